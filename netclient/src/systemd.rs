//! What systemd gets of a program that it runs: log entries with levels, and word of when the program is ready.
//!
//! Where standard error is the journal's, each line begins with its level as sd-daemon(3) has it, `<4>` for a
//! warning, and has neither a time nor colours: the journal keeps the time, and `journalctl` colours. Anywhere
//! else lines are as they are on a terminal. nmserver's log is made here as well.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The level of an error in the journal (syslog(3)).
const ERROR: u8 = 3;

/// Starts the log of this program, on standard error. What is logged is decided by the environment variable
/// (`NETCLIENT_LOG`), and else by `default`.
///
/// # Panics
///
/// When it was started before.
pub fn start_log(variable: &str, default: &str) {
    let wanted = EnvFilter::try_from_env(variable).unwrap_or_else(|_| default.into());
    let log = tracing_subscriber::fmt().with_env_filter(wanted).with_writer(io::stderr);
    if is_journal() {
        let format = tracing_subscriber::fmt::format().without_time().with_level(false);
        log.with_ansi(false).event_format(Entry(format)).init();
    } else {
        log.with_ansi(io::stderr().is_terminal()).init();
    }
}

/// Prints why a program ends without success: the error and its causes, a line each.
pub fn print_error(program: &str, error: &dyn std::error::Error) {
    let mut text = format!("{program}: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!("  because: {error}\n");
        cause = error.source();
    }
    if is_journal() {
        text = with_level(ERROR, &text);
    }
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Lets systemd know that the program is ready, if a unit of `Type=notify` runs it; `systemctl start` waits
/// for that.
pub fn ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot let systemd know that this program is ready");
    }
}

/// Whether standard error is the journal's: `JOURNAL_STREAM` has its device and inode. Programs that were
/// started with another standard error inherit the variable too.
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM");
    named.is_ok_and(|named| {
        fstat(io::stderr()).is_ok_and(|it| named == format!("{}:{}", it.st_dev, it.st_ino))
    })
}

/// An event as the journal gets it.
struct Entry(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Entry
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        writer.write_str(&with_level(level_of(event.metadata().level()), &text))
    }
}

/// The level of the journal (syslog(3)).
fn level_of(level: &Level) -> u8 {
    match *level {
        Level::ERROR => ERROR,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Each line with the level before it: the journal makes an entry of each.
fn with_level(level: u8, text: &str) -> String {
    text.lines().map(|line| format!("<{level}>{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics with it").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_of_an_entry_begins_with_its_level_and_has_no_time() {
        let lines = Lines::default();
        let to = lines.clone();
        let format = tracing_subscriber::fmt::format().without_time().with_level(false).with_target(false);
        let log = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(false);
        let log = log.event_format(Entry(format)).with_writer(move || to.clone()).finish();
        tracing::subscriber::with_default(log, || {
            tracing::error!("a");
            tracing::warn!(error = "x", "b\nc");
            tracing::info!("d");
            tracing::debug!("e");
            tracing::trace!("f");
        });
        let text = lines.0.lock().expect("no test panics with it").clone();
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text, "<3>a\n<4>b\n<4>c error=\"x\"\n<6>d\n<7>e\n<7>f\n");
    }
}
