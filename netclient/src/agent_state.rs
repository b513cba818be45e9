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
//! 4. while the server is silent, or sends what cannot be used, it asks again with backoff
//!    ([`backoff`](crate::backoff)), and the tunnel stays as it is;
//! 5. when the server has removed the node, it removes everything of the network and ends.
//!
//! Meanwhile the host is compared with the View every half minute, because others may change it too.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// How often the host is compared with what it should be while nothing happens.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(30);
/// How long after a change by others the host is looked at, and how often at most: what keeps others out of it
/// is back within a second, also where it is taken away right after a look.
const SETTLE: Duration = Duration::from_millis(100);
const REPAIR_INTERVAL: Duration = Duration::from_millis(500);
/// How often at most a new address or carrier of the host makes it ask again, and within which time: a switch
/// connects many hosts at once.
const CONNECTED_INTERVAL: Duration = Duration::from_secs(10);
const CONNECTED_SPREAD: Duration = Duration::from_secs(2);
/// How often the server is sent the host's facts, even if nothing seems to have changed: a NAT in between may
/// have.
const FACTS: Duration = Duration::from_secs(300);
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
    /// It sent something that is not valid, or does not apply to the current View.
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
    /// The host has another address or a carrier: it may reach what it did not.
    HostConnected,
    /// Names of peers' endpoints lead elsewhere.
    Resolved,
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
    failures: Backoff,
    reached: bool,
    /// When to send the host's facts again.
    facts_due: Instant,
    stream: Stream,
    ended_streams: Backoff,
    misfits: Backoff,
    /// When to ask again, since what was sent could not be used.
    ask: Option<Ask>,
    /// What was applied is older than the current View, or something could not be applied.
    unapplied: bool,
    apply_failures: Backoff,
    next_call: Instant,
    next_reconcile: Instant,
    last_reconcile: Instant,
    /// When a new address or carrier made it ask again.
    last_connected: Instant,
    removed: bool,
}

/// A check-in in progress.
#[derive(Clone, Copy, Debug)]
struct Call {
    with_facts: bool,
    /// When another one is due because of something since its start, and whether facts have changed since.
    again: Option<Instant>,
    new_facts: bool,
    /// When another one is due even if this one fails, since the host was connected after its start.
    connected: Option<Instant>,
}

/// What to ask for again.
#[derive(Clone, Copy, Debug)]
struct Ask {
    at: Instant,
    /// Whether the whole View, or what a check-in brings.
    whole: bool,
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
    /// It is open.
    Open,
}

impl AgentState {
    /// A host that starts now. `seed` differs between hosts, so that they do not all act in the same instant.
    pub fn new(interval: Duration, watch: bool, seed: u64, now: Instant) -> Self {
        Self {
            outputs: VecDeque::from([Output::Reconcile]),
            interval,
            seed,
            call: None,
            failures: Backoff::new(seed),
            reached: false,
            facts_due: now,
            stream: if watch { Stream::Closed(now) } else { Stream::Off },
            ended_streams: Backoff::new(seed.rotate_left(16)),
            misfits: Backoff::new(seed.rotate_left(32)),
            ask: None,
            unapplied: true,
            apply_failures: Backoff::new(seed.rotate_left(48)),
            next_call: now,
            next_reconcile: now + RECONCILE_INTERVAL,
            last_reconcile: now,
            last_connected: now,
            removed: false,
        }
    }

    /// How long to wait between check-ins, from now on.
    pub fn set_interval(&mut self, interval: Duration, now: Instant) {
        self.interval = interval;
        if !self.failures.is_failing() {
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
            Input::Misfit => self.ask_again(true, now),
            // If nothing can be applied, a check-in reports the same position again.
            Input::Overtaken => self.ask_again(self.unapplied, now),
            Input::Removed => {
                self.removed = true;
                self.outputs.clear();
                self.next_reconcile = now;
            }
            Input::StreamOpened => self.stream = Stream::Open,
            Input::StreamEnded => self.stream_ended(now),
            Input::Applied { facts_changed } => self.was_applied(facts_changed, now),
            Input::ApplyFailed => self.apply_failed(now),
            Input::HostChanged => self.host_changed(now),
            Input::HostConnected => self.host_connected(now),
            Input::Resolved => self.push_apply(),
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

    /// Asks again soon, and with short pauses, since routes may come after addresses; not all the time where
    /// interfaces come and go all the time.
    fn host_connected(&mut self, now: Instant) {
        if now < self.last_connected + CONNECTED_INTERVAL {
            return;
        }
        let then = now + self.spread(CONNECTED_SPREAD);
        match &mut self.call {
            // It may wait for an answer to what was sent before.
            Some(call) => call.connected = Some(then),
            None if self.failures.is_failing() => self.next_call = self.next_call.min(then),
            None => return,
        }
        self.last_connected = now;
        self.failures.begin_anew();
    }

    fn apply_failed(&mut self, now: Instant) {
        self.next_reconcile = self.apply_failures.failed(now);
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
        if let Some(Ask { whole, .. }) = self.ask.take_if(|ask| now >= ask.at) {
            if whole { self.push_once(Output::Pull) } else { self.call_by(now) }
        }
        if now >= self.next_call && self.call.is_none() {
            let with_facts = now >= self.facts_due;
            self.call = Some(Call { with_facts, again: None, new_facts: false, connected: None });
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
            Stream::Closed(_) | Stream::Off | Stream::Opening | Stream::Open => None,
        };
        [call, watch, self.ask.map(|ask| ask.at)]
            .into_iter()
            .flatten()
            .fold(self.next_reconcile, Instant::min)
    }

    /// Schedules a check-in for then at the latest; one in progress does not count, since it was sent before.
    fn call_by(&mut self, then: Instant) {
        match &mut self.call {
            Some(call) => call.again = Some(call.again.map_or(then, |again| again.min(then))),
            None => self.next_call = self.next_call.min(then),
        }
    }

    fn answered(&mut self, now: Instant) {
        let call = self.call.take();
        self.failures.worked();
        self.reached = true;
        if call.is_some_and(|call| call.with_facts && !call.new_facts) {
            self.facts_due = now + FACTS;
        }
        let again = call.and_then(|call| call.again).map(|again| again.max(now + self.spread(SPREAD)));
        self.next_call = again.unwrap_or(now + self.interval).min(now + self.interval);
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
        let connected = self.call.take().and_then(|call| call.connected);
        self.reached = false;
        let due = self.failures.failed(now);
        self.next_call = connected.map_or(due, |then| then.clamp(now, due));
    }

    fn stream_ended(&mut self, now: Instant) {
        if self.stream != Stream::Off {
            self.stream = Stream::Closed(self.ended_streams.failed(now));
        }
        // Perhaps the server is gone: a check-in will show it.
        if !self.failures.is_failing() {
            let then = now + self.spread(SPREAD);
            self.call_by(then);
        }
    }

    fn want_apply(&mut self) {
        self.unapplied = true;
        self.push_apply();
    }

    fn push_apply(&mut self) {
        // Comparing everything applies what changed as well.
        if !self.outputs.contains(&Output::Reconcile) {
            self.push_once(Output::Apply);
        }
    }

    fn was_applied(&mut self, facts_changed: bool, now: Instant) {
        let acknowledge = self.unapplied && self.reached;
        self.unapplied = false;
        self.apply_failures.worked();
        if facts_changed {
            self.facts_due = now;
            self.call.iter_mut().for_each(|call| call.new_facts = true);
        }
        if !self.failures.is_failing() && (facts_changed || acknowledge) {
            let then = now + self.spread(SPREAD);
            self.call_by(then);
        }
    }

    fn push_once(&mut self, output: Output) {
        if !self.outputs.contains(&output) {
            self.outputs.push_back(output);
        }
    }

    /// Asks again soon, unless that is about to happen.
    fn ask_again(&mut self, whole: bool, now: Instant) {
        match &mut self.ask {
            Some(ask) => ask.whole |= whole,
            None => self.ask = Some(Ask { at: self.misfits.failed(now), whole }),
        }
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
    /// The bounds of the first pause and of the longest one; see [`Backoff`].
    const FIRST_PAUSE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
        assert_eq!(outputs(&mut state), []);
        let now = now + FIRST_PAUSE;
        state.handle_timeout(now);
        assert_eq!(outputs(&mut state), [Output::CheckIn { with_facts: false }]);
        state.handle(Input::Answered, now);
        state.handle(Input::Changed, now);
        state.handle(Input::ApplyFailed, now);
        assert_eq!(outputs(&mut state), [Output::Apply]);
        state.handle(Input::Overtaken, now);
        state.handle_timeout(now + FIRST_PAUSE * 2);
        let outputs = outputs(&mut state);
        assert!(
            outputs.contains(&Output::Pull),
            "if nothing can be applied, asking does not help: {outputs:?}"
        );
    }

    #[test]
    fn names_that_lead_elsewhere_are_applied_and_the_server_need_not_know() {
        let (mut state, now) = started(false);
        state.handle(Input::Answered, now);
        state.handle(Input::Resolved, now);
        assert_eq!(outputs(&mut state), [Output::Apply]);
        state.handle(Input::Applied { facts_changed: false }, now);
        assert_eq!(state.poll_timeout(), now + INTERVAL);
    }

    /// How many calls an agent makes in ten minutes at a server that always gives these answers: to a
    /// check-in, to a stream, on it, and to a request for the whole View.
    fn storm(check_in: &[Input], stream: &[Input], whole: &[Input]) -> usize {
        let now = Instant::now();
        let end = now + Duration::from_secs(600);
        let mut state = AgentState::new(INTERVAL, true, 7, now);
        let (mut now, mut calls) = (now, 0);
        while now < end {
            state.handle_timeout(now);
            while let Some(output) = state.poll_output() {
                let answers = match output {
                    Output::CheckIn { .. } => check_in,
                    Output::Watch => stream,
                    Output::Pull => whole,
                    Output::Apply | Output::Reconcile => {
                        state.handle(Input::Applied { facts_changed: false }, now);
                        continue;
                    }
                    Output::TakeDown => unreachable!("nobody removed it"),
                };
                calls += 1;
                for answer in answers {
                    state.handle(*answer, now);
                }
                assert!(calls < 10_000, "a storm");
            }
            // Streams that stay open bring more.
            if stream.last().is_some_and(|last| *last != Input::StreamEnded) && state.stream == Stream::Open {
                stream[1..].iter().for_each(|answer| state.handle(*answer, now));
            }
            now = (now + Duration::from_millis(10))
                .max(state.poll_timeout().min(now + Duration::from_millis(100)));
        }
        calls
    }

    #[test]
    fn no_wrong_answer_makes_a_storm() {
        use Input::{Answered, Changed, Failed, Misfit, Overtaken, Refused, StreamEnded, StreamOpened};
        let fine: &[Input] = &[Answered];
        let (open, closed): (&[Input], &[Input]) = (&[StreamOpened], &[StreamOpened, StreamEnded]);
        // A check-in every 15 seconds makes 40; doubling pauses up to half a minute make 35 at most of each
        // other way to ask, and each stream that ends is one more check-in.
        for (what, calls, most) in [
            ("nothing is wrong", storm(fine, open, &[]), 45),
            ("nobody answers", storm(&[Failed], closed, &[]), 45),
            ("every check-in is refused", storm(&[Refused], closed, &[]), 45),
            ("streams are refused or closed at once", storm(fine, closed, &[]), 120),
            ("check-ins bring what does not fit", storm(&[Answered, Misfit], open, &[Misfit]), 90),
            ("and whole Views do not help", storm(&[Answered, Misfit], open, &[Changed]), 130),
            ("streams bring what does not fit", storm(fine, &[StreamOpened, Misfit], &[Misfit]), 90),
            ("and whole Views fit", storm(fine, &[StreamOpened, Misfit], &[Changed]), 130),
            ("check-ins are overtaken", storm(&[Answered, Overtaken], open, &[Overtaken]), 90),
            ("streams are overtaken", storm(fine, &[StreamOpened, Overtaken], &[Overtaken]), 90),
            (
                "everything is wrong",
                storm(&[Answered, Misfit, Overtaken], &[StreamOpened, Misfit, StreamEnded], &[Misfit]),
                160,
            ),
        ] {
            assert!(calls <= most, "{what}: {calls} calls in ten minutes");
        }
    }

    #[test]
    fn a_host_that_gets_an_address_asks_again_within_two_seconds_and_not_for_each_of_very_many() {
        let (mut state, mut now) = started(false);
        let (mut answered, start) = started(false);
        answered.handle(Input::Answered, start);
        let due = answered.next_call;
        answered.handle(Input::HostConnected, start + CONNECTED_INTERVAL);
        assert_eq!(answered.next_call, due, "nothing has failed");
        for _ in 0..10 {
            state.handle(Input::Failed, now);
            now = state.poll_timeout().max(state.next_call);
            state.handle_timeout(now);
            assert!(outputs(&mut state).contains(&Output::CheckIn { with_facts: true }));
        }
        state.handle(Input::Failed, now);
        assert!(state.next_call > now + FIRST_PAUSE);
        state.handle(Input::HostConnected, now);
        assert!(state.next_call <= now + CONNECTED_SPREAD);
        now = state.next_call;
        state.handle_timeout(now);
        // The route is not there yet.
        state.handle(Input::Failed, now);
        assert!(state.next_call <= now + FIRST_PAUSE);
        for _ in 0..10 {
            now = state.poll_timeout().max(state.next_call);
            state.handle_timeout(now);
            outputs(&mut state);
            state.handle(Input::Failed, now);
        }
        // The cable comes while a call waits for an answer that does not come.
        now = state.poll_timeout().max(state.next_call);
        state.handle_timeout(now);
        outputs(&mut state);
        state.handle(Input::HostConnected, now);
        now += Duration::from_secs(8);
        state.handle(Input::Failed, now);
        assert_eq!(state.next_call, now, "it is long due");
        let mut calls = 0;
        for _ in 0..600 {
            now += Duration::from_millis(100);
            state.handle(Input::HostConnected, now);
            for output in outputs(&mut state) {
                if let Output::CheckIn { .. } = output {
                    calls += 1;
                    state.handle(Input::Failed, now);
                }
            }
        }
        assert!(calls <= 40, "{calls} calls in a minute");
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
            Just(Input::Resolved),
            Just(Input::HostConnected),
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
