//! What Ctrl-C, SIGTERM and SIGHUP do to an apply.
//!
//! Until its plan is sent they end the process, wherever it is: nothing was applied, and that is said. From
//! [`Interrupts::hold`] on only the run itself knows what happened: it [waits](Interrupts::received) for a
//! signal beside the server, and says what is known. While it prints, the console waits for one beside the
//! reader.

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::{fs, io};

use tokio::signal::unix::{Signal, SignalKind, signal};
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
    /// Receives those of this process from now on. `end` ends it; it is called while the run does not act
    /// itself. A signal that whoever started the process had it ignore, as nohup does with SIGHUP, stays
    /// ignored.
    ///
    /// They are received by a thread of their own, because the run may be in the middle of reading standard
    /// input.
    pub fn receive(&self, end: impl Fn() + Send + 'static) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let ignored = ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        let receive = |kind: SignalKind| {
            let is_ignored = ignored & 1 << (kind.as_raw_value() - 1) != 0;
            if is_ignored { Ok(None) } else { signal(kind).map(Some) }
        };
        let (mut interrupt, mut terminate, mut hangup) = {
            let _guard = runtime.enter();
            (
                receive(SignalKind::interrupt())?,
                receive(SignalKind::terminate())?,
                receive(SignalKind::hangup())?,
            )
        };
        let receiver = self.clone();
        thread::spawn(move || {
            loop {
                runtime.block_on(async {
                    tokio::select! {
                        () = next(&mut interrupt) => (),
                        () = next(&mut terminate) => (),
                        () = next(&mut hangup) => (),
                    }
                });
                receiver.arrive(&end);
            }
        });
        Ok(())
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

/// The signals that a process ignores, from its `/proc/PID/status`: bit n - 1 for signal n. None where that
/// cannot be read.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Waits for a signal; for ever if it is ignored.
async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signals_that_a_process_ignores_are_read_from_its_status() {
        // SIGPIPE (13), as in each Rust program, and SIGHUP (1).
        let status = "Name:\tnmplan\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 1 << 12 | 1);
        assert_eq!(ignored(""), 0);
    }
}
