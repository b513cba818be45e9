//! Where a run prints and whom it asks: data on one side, talk on the other.
//!
//! Everything that is printed may be styled; the styles are taken away where nobody would see them.

use std::future::Future;
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use anstream::{AutoStream, ColorChoice};

use crate::args::{Color, Global};
use crate::events::Event;

/// How long something may take before a terminal is told that it goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a run prints and whom it asks.
pub struct Console {
    data: Box<dyn Write>,
    talk: Box<dyn Write>,
    answers: Option<Box<dyn BufRead>>,
    live: bool,
    /// How many columns a line has.
    pub width: usize,
    /// Whether only what was asked for is said.
    pub quiet: bool,
    /// Whether nothing is folded.
    pub verbose: bool,
    /// Whether events are printed in place of text.
    pub json: bool,
}

impl Console {
    /// The streams of this process. Nobody is asked where standard input is read for files, or is no terminal.
    pub fn of_process(global: &Global) -> Self {
        let choice = match global.color {
            Color::Auto => None,
            Color::Always => Some(ColorChoice::Always),
            Color::Never => Some(ColorChoice::Never),
        };
        let (data, talk) = (io::stdout(), io::stderr());
        let (data_choice, talk_choice) =
            (choice.unwrap_or_else(|| AutoStream::choice(&data)), choice.unwrap_or_else(|| AutoStream::choice(&talk)));
        let asks =
            io::stdin().is_terminal() && talk.is_terminal() && global.files.iter().all(|file| file.as_os_str() != "-");
        Self {
            live: talk.is_terminal() && !global.quiet,
            data: Box::new(AutoStream::new(data, data_choice)),
            talk: Box::new(AutoStream::new(talk, talk_choice)),
            answers: if asks { Some(Box::new(io::stdin().lock())) } else { None },
            width: width(),
            quiet: global.quiet,
            verbose: global.verbose,
            json: global.json,
        }
    }

    /// A console of other streams, without colour; `answers` is what somebody types.
    pub fn of(
        global: &Global,
        data: impl Write + 'static,
        talk: impl Write + 'static,
        answers: Option<&'static str>,
    ) -> Self {
        let plain = |stream: Box<dyn Write>| Box::new(AutoStream::never(stream)) as Box<dyn Write>;
        Self {
            data: plain(Box::new(data)),
            talk: plain(Box::new(talk)),
            answers: answers.map(|typed| Box::new(typed.as_bytes()) as Box<dyn BufRead>),
            live: false,
            width: 100,
            quiet: global.quiet,
            verbose: global.verbose,
            json: global.json,
        }
    }

    /// Prints what was asked for.
    pub fn data(&mut self, text: &str) -> io::Result<()> {
        self.data.write_all(text.as_bytes())?;
        self.data.flush()
    }

    /// Prints an event.
    pub fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let line = serde_json::to_string(event).expect("an event can be written as JSON");
        self.data(&format!("{line}\n"))
    }

    /// Says something beside what was asked for; where talk cannot be heard, nothing is lost.
    pub fn talk(&mut self, text: &str) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// Says what must be heard also by who wants quiet.
    pub fn say(&mut self, text: &str) {
        let _ = self.talk.write_all(text.as_bytes()).and_then(|()| self.talk.flush());
    }

    /// Whether there is somebody to ask.
    pub fn asks(&self) -> bool {
        self.answers.is_some()
    }

    /// Asks a question; what was typed, without the end of the line.
    pub fn ask(&mut self, question: &str) -> io::Result<String> {
        self.say(question);
        let mut line = String::new();
        if let Some(answers) = &mut self.answers {
            answers.read_line(&mut line)?;
        }
        Ok(line.trim().to_owned())
    }

    /// Waits for something, and tells a terminal after a while what for and since when.
    pub async fn waiting<T>(&mut self, what: &str, future: impl Future<Output = T>) -> T {
        let (begun, mut told) = (Instant::now(), 0);
        // Blanks and not an escape sequence, which is lost where colours are.
        let wipe = |width| format!("\r{:width$}\r", "");
        let mut future = std::pin::pin!(future);
        loop {
            let step = if told > 0 { Duration::from_secs(1) } else { PATIENCE };
            match tokio::time::timeout(step, &mut future).await {
                Ok(done) => {
                    if told > 0 {
                        self.say(&wipe(told));
                    }
                    return done;
                }
                Err(_) if self.live => {
                    let line = format!("{what} ({} s)", begun.elapsed().as_secs());
                    self.say(&format!("{}{line}", wipe(told)));
                    told = line.chars().count();
                }
                Err(_) => {}
            }
        }
    }
}

fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr()).map(|size| usize::from(size.ws_col));
    size.ok().filter(|columns| *columns >= 40).map_or(100, |columns| columns.min(140))
}
