//! When an agent calls the server, and when it applies what it has: the life of one membership.
//!
//! Pure: it never sleeps, locks, spawns or reads a clock. The driver passes in what happened ([`Input`]) and
//! the time, carries out what it returns ([`Output`]), and wakes it at [`AgentState::poll_timeout`]. Its
//! life, in order:
//!
//! 1. it starts with the View on the disk, and applies it before the server is called;
//! 2. it checks in, and again each interval; it applies what changes, and reports that by one more check-in;
//! 3. after a check-in that was answered it watches, so that changes arrive at once; losing the stream is
//!    normal;
//! 4. while the server is silent it tries again with backoff, up to half a minute, and the tunnel stays as it
//!    is;
//! 5. when the server has removed the node, it removes everything of the network and ends.
//!
//! Meanwhile the host is compared with the View every half minute, because others may change it too.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The first pause after a failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the host is compared with what it should be while nothing happens.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);
/// How long after a change by others the host is looked at, and how often at most.
const SETTLE: Duration = Duration::from_millis(100);
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);
/// How often the server is sent the host's facts, even if nothing seems to have changed: a NAT in between may
/// have.
const FACTS: Duration = Duration::from_secs(300);
/// A stream that lasted this long counts as good.
const GOOD_STREAM: Duration = Duration::from_secs(60);
/// All agents report within this time that they have applied a change, but not in the same instant.
const SPREAD: Duration = Duration::from_millis(400);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The server answered the check-in in progress.
    Answered,
    /// It refused that check-in.
    Refused,
    /// It did not answer.
    Failed,
    /// It sent a different View.
    Changed,
    /// It sent something that does not apply to the current View.
    Misfit,
    /// It sent something that is out of date: the host lacks more than the server knew.
    Overtaken,
    /// The host is no longer a node of the network.
    Removed,
    /// The stream of changes is open.
    StreamOpened,
    /// The stream of changes has ended, or could not be opened.
    StreamEnded,
    /// The View is applied; whether the host's facts differ from before.
    Applied {
        /// Whether its port or address changed.
        facts_changed: bool,
    },
    /// The View could not be applied.
    ApplyFailed,
    /// Somebody changed what the tunnel stands on.
    HostChanged,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Apply what changed in the View.
    Apply,
    /// Compare the host with the View, and apply whatever it lacks.
    Reconcile,
    /// Check in.
    CheckIn {
        /// Whether to send the host's facts.
        with_facts: bool,
    },
    /// Ask for the whole View.
    Pull,
    /// Open the stream of changes.
    Watch,
    /// Remove everything of the network.
    TakeDown,
}

/// The life of one membership.
#[derive(Debug)]
pub struct AgentState {
    outputs: VecDeque<Output>,
    interval: Duration,
    seed: u64,
    /// The call in progress; there is one at a time.
    call: Option<Call>,
    /// How many calls in a row have failed.
    failures: u32,
    reached: bool,
    /// When to send the host's facts again.
    facts_due: Instant,
    stream: Stream,
    /// How many streams in a row ended early.
    short_streams: u32,
    /// What was applied is older than the current View, or something could not be applied.
    unapplied: bool,
    apply_failures: u32,
    next_call: Instant,
    next_reconcile: Instant,
    last_reconcile: Instant,
    removed: bool,
}

/// A check-in in progress.
#[derive(Clone, Copy, Debug)]
struct Call {
    with_facts: bool,
    /// Whether something since its start requires another one, and whether that is changed facts.
    again: bool,
    new_facts: bool,
}

/// The stream of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// It is not used.
    Off,
    /// It may be opened from then on.
    Closed(Instant),
    /// It is being opened.
    Opening,
    /// It is open since then.
    Open(Instant),
}

impl AgentState {
    /// A host that starts now. `seed` differs between hosts, so that they do not all act in the same instant.
    pub fn new(interval: Duration, watch: bool, seed: u64, now: Instant) -> Self {
        Self {
            outputs: VecDeque::from([Output::Reconcile]),
            interval,
            seed,
            call: None,
            failures: 0,
            reached: false,
            facts_due: now,
            stream: if watch { Stream::Closed(now) } else { Stream::Off },
            short_streams: 0,
            unapplied: true,
            apply_failures: 0,
            next_call: now,
            next_reconcile: now + RECONCILE_INTERVAL,
            last_reconcile: now,
            removed: false,
        }
    }

    /// How long to wait between check-ins, from now on.
    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.interval = interval;
        if self.failures == 0 {
            self.next_call = self.next_call.min(now + interval);
        }
    }

    /// Whether the server answered the last time.
    pub fn is_reached(&self) -> bool {
        self.reached
    }

    /// Makes it check in as soon as it can.
    pub fn check_in_soon(&mut self, now: Instant) {
        self.call_by(now);
        self.handle_timeout(now);
    }

    /// Handles what happened.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if self.removed {
            return self.handle_removed(input, now);
        }
        match input {
            Input::Answered => self.answered(now),
            Input::Refused => self.refused(now),
            Input::Failed => self.failed(now),
            Input::Changed => self.want_apply(),
            Input::Misfit => self.push_once(Output::Pull),
            Input::Overtaken if self.unapplied => self.push_once(Output::Pull),
            Input::Overtaken => self.call_by(now),
            Input::Removed => {
                self.removed = true;
                self.outputs.clear();
                self.next_reconcile = now;
            }
            Input::StreamOpened => self.stream = Stream::Open(now),
            Input::StreamEnded => self.stream_ended(now),
            Input::Applied { facts_changed } => self.was_applied(facts_changed, now),
            Input::ApplyFailed => self.apply_failed(now),
            Input::HostChanged => self.host_changed(now),
        }
        self.handle_timeout(now);
    }

    /// A removed node has one thing left to do: remove everything of the network, if necessary in several
    /// tries.
    fn handle_removed(&mut self, input: Input, now: Instant) {
        if input == Input::ApplyFailed {
            self.apply_failed(now);
        }
        self.handle_timeout(now);
    }

    /// Looks soon, when whoever is at it may be done; not all the time where somebody does it again and
    /// again.
    fn host_changed(&mut self, now: Instant) {
        let soon = (now + SETTLE).max(self.last_reconcile + REPAIR_INTERVAL);
        self.next_reconcile = self.next_reconcile.min(soon);
    }

    fn apply_failed(&mut self, now: Instant) {
        self.apply_failures = self.apply_failures.saturating_add(1);
        self.next_reconcile = now + self.pause(self.apply_failures);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.next_reconcile {
            self.next_reconcile = now + RECONCILE_INTERVAL;
            self.last_reconcile = now;
            self.push_once(if self.removed { Output::TakeDown } else { Output::Reconcile });
        }
        if self.removed {
            return;
        }
        if now >= self.next_call && self.call.is_none() {
            let with_facts = now >= self.facts_due;
            self.call = Some(Call { with_facts, again: false, new_facts: false });
            self.outputs.push_back(Output::CheckIn { with_facts });
        }
        if let Stream::Closed(from) = self.stream
            && now >= from
            && self.reached
        {
            self.stream = Stream::Opening;
            self.outputs.push_back(Output::Watch);
        }
    }

    /// What to do next; absent: nothing before [`AgentState::poll_timeout`] or the next input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`AgentState::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        if self.removed {
            return self.next_reconcile;
        }
        let call = self.call.is_none().then_some(self.next_call);
        let watch = match self.stream {
            Stream::Closed(from) if self.reached => Some(from),
            Stream::Closed(_) | Stream::Off | Stream::Opening | Stream::Open(_) => None,
        };
        [call, watch].into_iter().flatten().fold(self.next_reconcile, Instant::min)
    }

    /// Schedules a check-in for then at the latest; one in progress does not count, since it was sent before.
    fn call_by(&mut self, then: Instant) {
        match &mut self.call {
            Some(call) => call.again = true,
            None => self.next_call = self.next_call.min(then),
        }
    }

    fn answered(&mut self, now: Instant) {
        let call = self.call.take();
        self.failures = 0;
        self.reached = true;
        if call.is_some_and(|call| call.with_facts && !call.new_facts) {
            self.facts_due = now + FACTS;
        }
        let again = call.is_some_and(|call| call.again);
        self.next_call = now + if again { self.spread(SPREAD) } else { self.interval };
    }

    /// The facts may be what was refused: the next call goes without them, so that the rest works.
    fn refused(&mut self, now: Instant) {
        let with_facts = self.call.is_some_and(|call| call.with_facts);
        self.failed(now);
        if with_facts {
            self.facts_due = now + FACTS;
        }
    }

    fn failed(&mut self, now: Instant) {
        self.call = None;
        self.failures = self.failures.saturating_add(1);
        self.reached = false;
        self.next_call = now + self.pause(self.failures);
    }

    fn stream_ended(&mut self, now: Instant) {
        let good = matches!(self.stream, Stream::Open(since) if now >= since + GOOD_STREAM);
        self.short_streams = if good { 0 } else { self.short_streams.saturating_add(1) };
        if self.stream != Stream::Off {
            self.stream = Stream::Closed(now + self.pause(self.short_streams));
        }
        // Perhaps the server is gone: a check-in will show it.
        if self.failures == 0 {
            let then = now + self.spread(SPREAD);
            self.call_by(then);
        }
    }

    fn want_apply(&mut self) {
        self.unapplied = true;
        // Comparing everything applies what changed as well.
        if !self.outputs.contains(&Output::Reconcile) {
            self.push_once(Output::Apply);
        }
    }

    fn was_applied(&mut self, facts_changed: bool, now: Instant) {
        let acknowledge = self.unapplied && self.reached;
        self.unapplied = false;
        self.apply_failures = 0;
        if facts_changed {
            self.facts_due = now;
            self.call.iter_mut().for_each(|call| call.new_facts = true);
        }
        if self.failures == 0 && (facts_changed || acknowledge) {
            let then = now + self.spread(SPREAD);
            self.call_by(then);
        }
    }

    fn push_once(&mut self, output: Output) {
        if !self.outputs.contains(&output) {
            self.outputs.push_back(output);
        }
    }

    /// How long to wait after this many failures in a row: half of it fixed, half random.
    fn pause(&mut self, failures: u32) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(5));
        let half = doubled.min(LONGEST_PAUSE) / 2;
        half + self.spread(half)
    }

    /// A random part of a span (xorshift64; Marsaglia 2003), the same for the same seed.
    fn spread(&mut self, span: Duration) -> Duration {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        span.mul_f64((self.seed >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(15);

    fn outputs(state: &mut AgentState) -> Vec<Output> {
        std::iter::from_fn(|| state.poll_output()).collect()
    }

    fn started(watch: bool) -> (AgentState, Instant) {
        let now = Instant::now();
        let mut state = AgentState::new(INTERVAL, watch, 7, now);
        state.handle_timeout(now);
        assert_eq!(outputs(&mut state), [Output::Reconcile, Output::CheckIn { with_facts: true }]);
        state.handle(Input::Applied { facts_changed: false }, now);
        (state, now)
    }

    #[test]
    fn the_tunnel_comes_up_before_the_server_is_asked_and_changes_are_watched() {
        let (mut state, now) = started(true);
        assert!(!state.is_reached());
        state.handle(Input::Answered, now);
        assert_eq!(outputs(&mut state), [Output::Watch]);
        assert!(state.is_reached());
        state.handle(Input::StreamOpened, now);
        assert_eq!(state.poll_timeout(), now + INTERVAL);
        state.handle_timeout(now + INTERVAL);
        assert_eq!(outputs(&mut state), [Output::CheckIn { with_facts: false }]);
    }

    #[test]
    fn a_change_is_applied_once_and_acknowledged_at_once() {
        let (mut state, now) = started(false);
        state.handle(Input::Answered, now);
        state.handle(Input::Changed, now);
        state.handle(Input::Changed, now);
        assert_eq!(outputs(&mut state), [Output::Apply]);
        state.handle(Input::Applied { facts_changed: false }, now);
        state.handle_timeout(now + SPREAD);
        assert_eq!(outputs(&mut state), [Output::CheckIn { with_facts: false }]);
    }

    #[test]
    fn a_silent_server_is_called_with_backoff_and_nothing_is_removed() {
        let (mut state, mut now) = started(true);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            state.handle(Input::Failed, now);
            let due = state.next_call;
            pauses.push(due - now);
            now = due;
            state.handle_timeout(now);
            let outputs = outputs(&mut state);
            assert!(outputs.contains(&Output::CheckIn { with_facts: true }), "{outputs:?}");
            assert!(!outputs.contains(&Output::TakeDown) && !outputs.contains(&Output::Watch), "{outputs:?}");
        }
        assert!(pauses[0] <= FIRST_PAUSE && pauses[9] >= LONGEST_PAUSE / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE), "{pauses:?}");
    }

    #[test]
    fn a_stream_that_keeps_ending_is_opened_with_backoff() {
        let (mut state, mut now) = started(true);
        state.handle(Input::Answered, now);
        let mut opened = Vec::new();
        while opened.len() < 8 {
            for output in outputs(&mut state) {
                match output {
                    Output::Watch => {
                        opened.push(now);
                        state.handle(Input::StreamOpened, now);
                        state.handle(Input::StreamEnded, now);
                    }
                    Output::CheckIn { .. } => state.handle(Input::Answered, now),
                    Output::Apply | Output::Reconcile => {
                        state.handle(Input::Applied { facts_changed: false }, now)
                    }
                    Output::Pull | Output::TakeDown => unreachable!("nothing asks for it"),
                }
            }
            now = state.poll_timeout().max(now);
            state.handle_timeout(now);
        }
        assert!(opened[1] - opened[0] <= FIRST_PAUSE);
        assert!(opened[7] - opened[6] >= LONGEST_PAUSE / 2);
    }

    #[test]
    fn a_removed_node_removes_everything_and_ends() {
        let (mut state, now) = started(true);
        state.handle(Input::Changed, now);
        state.handle(Input::Removed, now);
        state.handle(Input::Changed, now);
        assert_eq!(outputs(&mut state), [Output::TakeDown]);
        state.handle(Input::ApplyFailed, now);
        let due = state.poll_timeout();
        assert!(due > now && due <= now + FIRST_PAUSE);
        state.handle_timeout(due);
        assert_eq!(outputs(&mut state), [Output::TakeDown], "it is tried again, and nothing else is done");
    }

    #[test]
    fn a_change_during_a_check_in_requires_another() {
        let (mut state, now) = started(false);
        state.handle(Input::Answered, now);
        state.handle_timeout(now + INTERVAL);
        assert_eq!(outputs(&mut state), [Output::CheckIn { with_facts: false }]);
        let now = now + INTERVAL;
        state.handle(Input::Changed, now);
        state.handle(Input::Applied { facts_changed: true }, now);
        state.handle(Input::Answered, now);
        state.handle_timeout(now + SPREAD);
        assert_eq!(outputs(&mut state), [Output::Apply, Output::CheckIn { with_facts: true }]);
    }

    #[test]
    fn facts_that_are_refused_keep_nothing_else_from_being_sent() {
        let (mut state, now) = started(false);
        state.handle(Input::Refused, now);
        let due = state.poll_timeout();
        assert!(due <= now + FIRST_PAUSE);
        state.handle_timeout(due);
        assert_eq!(outputs(&mut state), [Output::CheckIn { with_facts: false }]);
        state.handle(Input::Answered, due);
        assert!(state.is_reached());
    }

    #[test]
    fn what_is_out_of_date_is_asked_for_again() {
        let (mut state, now) = started(false);
        state.handle(Input::Answered, now);
        state.handle(Input::Overtaken, now);
        assert_eq!(outputs(&mut state), [Output::CheckIn { with_facts: false }]);
        state.handle(Input::Answered, now);
        state.handle(Input::Changed, now);
        state.handle(Input::ApplyFailed, now);
        state.handle(Input::Overtaken, now);
        assert_eq!(
            outputs(&mut state),
            [Output::Apply, Output::Pull],
            "if nothing can be applied, asking does not help"
        );
    }

    #[test]
    fn what_could_not_be_applied_is_tried_again_by_comparing_everything() {
        let (mut state, now) = started(false);
        state.handle(Input::Answered, now);
        state.handle(Input::Changed, now);
        assert_eq!(outputs(&mut state), [Output::Apply]);
        state.handle(Input::ApplyFailed, now);
        state.handle_timeout(now + FIRST_PAUSE);
        assert!(outputs(&mut state).contains(&Output::Reconcile));
    }

    #[test]
    fn changes_that_keep_coming_do_not_keep_the_host_from_being_compared() {
        let (mut state, mut now) = started(false);
        state.handle(Input::Answered, now);
        let start = now;
        let mut compared = Vec::new();
        while now < start + RECONCILE_INTERVAL * 3 {
            now += Duration::from_secs(7);
            state.handle(Input::Changed, now);
            for output in outputs(&mut state) {
                match output {
                    Output::Reconcile => compared.push(now),
                    Output::CheckIn { .. } => state.handle(Input::Answered, now),
                    Output::Apply | Output::Pull | Output::Watch | Output::TakeDown => {}
                }
                state.handle(Input::Applied { facts_changed: false }, now);
            }
        }
        assert!(compared.len() >= 2, "{compared:?}");
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Answered),
            Just(Input::Failed),
            Just(Input::Changed),
            Just(Input::Misfit),
            Just(Input::Overtaken),
            Just(Input::Refused),
            Just(Input::StreamOpened),
            Just(Input::StreamEnded),
            Just(Input::Applied { facts_changed: false }),
            Just(Input::Applied { facts_changed: true }),
            Just(Input::ApplyFailed),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, at most one call is in progress, the next thing is due within
        /// half a minute, and it is never due in the past for ever.
        #[test]
        fn it_never_hangs_and_never_spins(inputs in proptest::collection::vec((input(), 0u64..20_000), 1..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut state = AgentState::new(INTERVAL, true, 3, now);
            let (mut calls, mut answers) = (0u32, 0u32);
            for (input, pause) in inputs {
                let answer = matches!(input, Input::Answered | Input::Refused | Input::Failed);
                if answer && calls == answers {
                    continue;
                }
                answers += u32::from(answer);
                state.handle(input, now);
                for output in outputs(&mut state) {
                    calls += u32::from(matches!(output, Output::CheckIn { .. }));
                }
                prop_assert!(calls - answers <= 1);
                prop_assert!(state.poll_timeout() <= now + LONGEST_PAUSE);
                now += Duration::from_millis(pause);
                state.handle_timeout(now);
                calls += outputs(&mut state).iter().filter(|it| matches!(it, Output::CheckIn { .. })).count() as u32;
                prop_assert!(state.poll_timeout() > now);
            }
        }
    }
}
