//! Where a run prints and whom it asks: what was asked for goes to standard output, everything else to
//! standard error.
//!
//! Everything that is printed may be styled; the styles are removed where they would not be shown.

use std::future::Future;
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anstream::{AutoStream, ColorChoice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::args::{Color, Global};
use crate::events::Event;
use crate::interrupt::Interrupts;

/// How long something may take before a terminal shows that it is in progress.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// How long the reader of an interrupted run has to take some of what is printed.
pub const TO_PRINT: Duration = Duration::from_secs(1);

/// How long to wait for a reader before looking whether a signal has arrived.
const LOOK: Duration = Duration::from_millis(50);

/// How many bytes are printed at once: where a pipe takes any, it takes so many without blocking (PIPE_BUF;
/// pipe(7)).
const AT_ONCE: usize = 4_096;

/// Where a run prints and whom it asks.
pub struct Console {
    stdout: Box<dyn Write>,
    stderr: Box<dyn Write>,
    answers: Option<Box<dyn BufRead>>,
    shows_progress: bool,
    /// What is to stop the run.
    pub interrupts: Interrupts,
    /// Whether a closed standard output is a failure, as before an apply whose plan somebody is to see. Else
    /// its reader has read enough.
    pub must_arrive: bool,
    /// How many columns a line has on standard error.
    pub width: usize,
    /// How many columns a line has on standard output; absent: it is no terminal, and lines have any length.
    pub columns: Option<usize>,
    /// Whether only what was asked for is printed, and errors.
    pub quiet: bool,
    /// Whether nothing is folded.
    pub verbose: bool,
    /// Whether events are printed in place of text.
    pub json: bool,
}

impl Console {
    /// The streams of this process. Questions are asked only if standard input is a terminal and is not read
    /// for files.
    pub fn of_process(global: &Global) -> Self {
        let choice = match global.color {
            Color::Auto => None,
            Color::Always => Some(ColorChoice::Always),
            Color::Never => Some(ColorChoice::Never),
        };
        let stdout = io::stdout();
        let stderr = io::stderr();
        let stdout_choice = choice.unwrap_or_else(|| AutoStream::choice(&stdout));
        let stderr_choice = choice.unwrap_or_else(|| AutoStream::choice(&stderr));
        let reads_files = global.files.iter().any(|file| file.as_os_str() == "-");
        let asks = io::stdin().is_terminal() && stderr.is_terminal() && !reads_files;
        let interrupts = Interrupts::default();
        let shows_progress = stderr.is_terminal() && !global.quiet;
        // Both may be one pipe, as in `2>&1 | tee`.
        let stdout: Box<dyn Write> =
            Box::new(Interruptible { stream: stdout, interrupts: interrupts.clone() });
        let stderr: Box<dyn Write> =
            Box::new(Interruptible { stream: stderr, interrupts: interrupts.clone() });
        Self {
            shows_progress,
            stdout: Box::new(AutoStream::new(stdout, stdout_choice)),
            stderr: Box::new(AutoStream::new(stderr, stderr_choice)),
            answers: if asks { Some(Box::new(BufReader::new(io::stdin()))) } else { None },
            interrupts,
            must_arrive: false,
            width: columns(io::stderr()).map_or(100, |columns| columns.min(140)),
            columns: columns(io::stdout()),
            quiet: global.quiet,
            verbose: global.verbose,
            json: global.json,
        }
    }

    /// A console of other streams, without colour; `answers` is what somebody types.
    pub fn of(
        global: &Global,
        stdout: impl Write + 'static,
        stderr: impl Write + 'static,
        answers: Option<&'static str>,
    ) -> Self {
        let plain = |stream: Box<dyn Write>| Box::new(AutoStream::never(stream)) as Box<dyn Write>;
        Self {
            stdout: plain(Box::new(stdout)),
            stderr: plain(Box::new(stderr)),
            answers: answers.map(|typed| Box::new(typed.as_bytes()) as Box<dyn BufRead>),
            shows_progress: false,
            interrupts: Interrupts::default(),
            must_arrive: false,
            width: 100,
            columns: None,
            quiet: global.quiet,
            verbose: global.verbose,
            json: global.json,
        }
    }

    /// Prints what was asked for. A reader that has closed the other end, as `head` does, has read enough:
    /// that is no failure, unless it [must arrive](Self::must_arrive). One that reads nothing for
    /// [`TO_PRINT`] after a signal has arrived is a failure.
    pub fn stdout(&mut self, text: &str) -> io::Result<()> {
        match self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe && !self.must_arrive => Ok(()),
            written => written,
        }
    }

    /// Prints an event.
    pub fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let line = serde_json::to_string(event).expect("an event can be written as JSON");
        self.stdout(&format!("{line}\n"))
    }

    /// Prints a note on standard error, unless the run is to be quiet.
    pub fn note(&mut self, text: &str) {
        if !self.quiet {
            self.stderr(text);
        }
    }

    /// Prints on standard error, even in a quiet run. A failure to write is ignored, since nothing that was
    /// asked for is lost.
    pub fn stderr(&mut self, text: &str) {
        let _ = self.stderr.write_all(text.as_bytes()).and_then(|()| self.stderr.flush());
    }

    /// Whether somebody can be asked.
    pub fn asks(&self) -> bool {
        self.answers.is_some()
    }

    /// Asks a question; returns what was typed, without the end of the line.
    pub fn ask(&mut self, question: &str) -> io::Result<String> {
        self.stderr(question);
        let mut line = String::new();
        if let Some(answers) = &mut self.answers {
            answers.read_line(&mut line)?;
        }
        Ok(line.trim().to_owned())
    }

    /// Waits for something; a terminal shows after a while what for, and since when.
    pub async fn waiting<T>(&mut self, what: &str, future: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let mut shown = 0;
        // Blanks and not an escape sequence, which would be removed together with colours.
        let wipe = |width| format!("\r{:width$}\r", "");
        let mut future = std::pin::pin!(future);
        loop {
            let step = if shown > 0 { Duration::from_secs(1) } else { SILENT_FOR };
            match tokio::time::timeout(step, &mut future).await {
                Ok(done) => {
                    if shown > 0 {
                        self.stderr(&wipe(shown));
                    }
                    return done;
                }
                Err(_) if self.shows_progress => {
                    let line = format!("{what} ({} s)", begun.elapsed().as_secs());
                    self.stderr(&format!("{}{line}", wipe(shown)));
                    shown = line.chars().count();
                }
                Err(_) => {}
            }
        }
    }
}

/// A stream that may block for as long as its reader likes: but not once the run is interrupted.
struct Interruptible<S> {
    stream: S,
    interrupts: Interrupts,
}

impl<S: AsFd> Write for Interruptible<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut until = None;
        while !takes_more(self.stream.as_fd())? {
            let gives_up = || Instant::now() + TO_PRINT;
            if self.interrupts.is_received() && *until.get_or_insert_with(gives_up) <= Instant::now() {
                return Err(io::Error::new(
                    ErrorKind::TimedOut,
                    "it was not read, and the run was interrupted",
                ));
            }
        }
        Ok(rustix::io::write(&self.stream, &bytes[..bytes.len().min(AT_ONCE)])?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits a moment until a stream takes more, or fails at once; whether it does.
fn takes_more(stream: BorrowedFd<'_>) -> io::Result<bool> {
    let moment = Timespec::try_from(LOOK).expect("it is short");
    match poll(&mut [PollFd::new(&stream, PollFlags::OUT)], Some(&moment)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How many columns a terminal has; nothing for what is none. A size below 20 is one that was never set.
fn columns(stream: impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns >= 20)
}
