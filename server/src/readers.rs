//! Reads of the store that do not wait for the writer.
//!
//! A commit of a hundred thousand changes takes seconds; a token must be found meanwhile, or every call
//! waits. So tokens and the log are read through readers of their own, each on a thread that may block, and
//! not through each other either: a long page of the log holds up no token.

use std::sync::{Arc, Mutex, PoisonError};

use schema::snapshot::Revision;

use crate::error::Error;
use crate::store::{LogEntry, Reader, Store, StoreError, StoredToken};

/// The readers of one store.
#[derive(Clone)]
pub struct Readers {
    tokens: Shared,
    log: Shared,
}

type Shared = Arc<Mutex<Box<dyn Reader>>>;

impl Readers {
    /// Opens them.
    pub fn open(store: &dyn Store) -> Result<Self, StoreError> {
        let open = || Ok(Arc::new(Mutex::new(store.reader()?)));
        Ok(Self { tokens: open()?, log: open()? })
    }

    /// The token of that id.
    pub async fn token(&self, id: String) -> Result<Option<StoredToken>, Error> {
        read(&self.tokens, move |reader| reader.token(&id)).await
    }

    /// The log entries with a revision above `after`, oldest first, at most `limit`.
    pub async fn log(&self, after: Revision, limit: usize) -> Result<Vec<LogEntry>, Error> {
        read(&self.log, move |reader| reader.log(after, limit)).await
    }
}

async fn read<T: Send + 'static>(
    reader: &Shared,
    read: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Error> {
    let reader = Arc::clone(reader);
    let blocking = move || read(&mut **reader.lock().unwrap_or_else(PoisonError::into_inner));
    off_thread(blocking).await?.map_err(Error::from)
}

/// Does on another thread what takes long, so that the threads that answer stay free.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Bug)
}
