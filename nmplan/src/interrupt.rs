//! What Ctrl-C, SIGTERM and SIGHUP do to an apply.
//!
//! Until its plan is sent they end the process, wherever it is: nothing was applied, and that is said. From
//! [`Interrupts::hold`] on only the run itself knows what happened: it [waits](Interrupts::received) for a
//! signal beside the server, and says what is known.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The signals that a run receives. Clones are the same; the default receives none.
#[derive(Clone, Debug)]
pub struct Interrupts {
    /// Whether the run itself acts on them.
    held: Arc<Mutex<bool>>,
    /// How many have arrived.
    arrived: watch::Sender<u64>,
}

impl Default for Interrupts {
    fn default() -> Self {
        Self { held: Arc::default(), arrived: watch::Sender::new(0) }
    }
}

impl Interrupts {
    /// Those of this process. `end` ends it; it is called while the run does not act itself.
    ///
    /// They are received by a thread of their own, because the run may be in the middle of reading standard
    /// input.
    pub fn of_process(end: impl Fn() + Send + 'static) -> io::Result<Self> {
        let interrupts = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let signals = {
            let _guard = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
        };
        let [interrupt, terminate, hangup] = signals;
        let (mut interrupt, mut terminate, mut hangup) = (interrupt?, terminate?, hangup?);
        let receiver = interrupts.clone();
        thread::spawn(move || {
            loop {
                runtime.block_on(async {
                    tokio::select! {
                        _ = interrupt.recv() => (),
                        _ = terminate.recv() => (),
                        _ = hangup.recv() => (),
                    }
                });
                receiver.arrive(&end);
            }
        });
        Ok(interrupts)
    }

    fn arrive(&self, end: impl FnOnce()) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !*held {
            end();
        }
        self.arrived.send_modify(|arrived| *arrived += 1);
    }

    /// From now on the run itself acts on a signal.
    pub fn hold(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Receives one, as if the process had.
    pub fn interrupt(&self) {
        self.arrive(|| ());
    }

    /// How many have arrived, so that something can be ended by one that comes later than others.
    pub fn count(&self) -> u64 {
        *self.arrived.borrow()
    }

    /// Whether one has arrived.
    pub fn is_received(&self) -> bool {
        self.count() > 0
    }

    /// Waits for one.
    pub async fn received(&self) {
        // It ends with an error only if the sender is gone, and that is this.
        let _ = self.arrived.subscribe().wait_for(|arrived| *arrived > 0).await;
    }
}
