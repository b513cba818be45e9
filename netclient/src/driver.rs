//! Keeps one network current until it is to end: carries out what the [state](crate::agent_state) says.
//!
//! Calls to the server run concurrently and come back as events; what is done to the host itself is done
//! here, one thing after the other, so that no two of them meet.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use proto::wire::{Facts, Update};
use schema::api::Control;
use schema::scalars::{Endpoint, NetworkName};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::agent::member::Member;
use crate::agent::{AgentError, DriverStatus, error_chain};
use crate::agent_state::{AgentState, Input, Output};
use crate::control::CallError;
use crate::membership::Accepted;
use crate::system::watch::HostEvent;

/// How many events may wait; a sender of more waits as well.
const WAITING: usize = 16;

/// A request to a driver, and where the answer goes: whether anything was new.
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<bool, AgentError>>,
}

/// What a driver can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Check in.
    CheckIn,
    /// Get the whole View.
    Pull,
    /// Leave the network; with `force`, even if the server cannot be reached.
    Leave {
        /// Whether to leave even if the server cannot be reached.
        force: bool,
    },
}

/// The results of calls, and of lookups.
enum Event {
    CheckedIn(Result<Option<Update>, CallError>, Option<Facts>),
    StreamOpened,
    Streamed(Update),
    StreamEnded,
    /// What some names of peers' endpoints resolve to; nothing of one that does not.
    Resolved(Vec<(Endpoint, Vec<SocketAddr>)>),
}

/// Keeps one network current.
pub struct Driver {
    member: Member,
    state: AgentState,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    stream: Option<AbortHandle>,
    status: watch::Sender<DriverStatus>,
    host_events: broadcast::Receiver<HostEvent>,
    /// Whether it was logged that the server does not answer at the start.
    reported_absent: bool,
}

/// Why a driver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was shut down; the tunnel stays.
    Shutdown,
    /// The host has left the network.
    Left,
}

impl Driver {
    /// A driver of a membership, and where to read how the network is.
    pub fn new(member: Member, watch: bool) -> (Self, watch::Receiver<DriverStatus>) {
        let (sender, events) = mpsc::channel(WAITING);
        let (status, published) = watch::channel(DriverStatus::default());
        let state = AgentState::new(interval(&member), watch, member.control().seed(), now());
        let host_events = member.host_events();
        (
            Self { member, state, events, sender, stream: None, status, host_events, reported_absent: false },
            published,
        )
    }

    /// Drives until `shutdown` becomes true or the host has left.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut shutdown: watch::Receiver<bool>,
    ) -> End {
        self.state.handle_timeout(now());
        loop {
            while let Some(output) = self.state.poll_output() {
                tracing::debug!(?output, network = %self.network(), "to do");
                if self.carry_out(output).await {
                    return End::Left;
                }
            }
            self.publish();
            let due = self.state.poll_timeout();
            tokio::select! {
                Some(event) = self.events.recv() => self.take_in(event).await,
                Some(request) = requests.recv() => if self.handle(request).await { return End::Left },
                event = self.host_events.recv() => self.hear(event),
                () = tokio::time::sleep_until(due.into()) => self.state.handle_timeout(now()),
                () = ended(&mut shutdown) => return End::Shutdown,
            }
        }
    }

    /// Takes in what somebody did to the host, as far as it touches this network.
    fn hear(&mut self, event: Result<HostEvent, broadcast::error::RecvError>) {
        let membership = self.member.membership();
        let (own, forwards) = (&membership.interface, !membership.view.forwards.is_empty());
        let touches = match &event {
            Ok(HostEvent::Link(name)) => name == own || forwards,
            Ok(HostEvent::Connected(name)) if name == own => false,
            Ok(HostEvent::Connected(_)) => {
                self.state.handle(Input::HostConnected, now());
                forwards
            }
            Ok(HostEvent::Surroundings) => forwards,
            // Too much to keep up with: anything may have happened.
            Ok(HostEvent::Routing | HostEvent::Filter) | Err(broadcast::error::RecvError::Lagged(_)) => true,
            Err(broadcast::error::RecvError::Closed) => false,
        };
        if touches {
            tracing::debug!(?event, network = %self.network(), "somebody changed what the tunnel stands on");
            self.state.handle(Input::HostChanged, now());
        }
    }

    /// Publishes how the network is.
    fn publish(&self) {
        let control = if self.state.is_reached() { self.member.control().transport() } else { Control::None };
        let status = DriverStatus { control, problems: self.member.problems().to_vec() };
        self.status.send_if_modified(|before| std::mem::replace(before, status.clone()) != status);
    }

    fn network(&self) -> NetworkName {
        self.member.membership().network.clone()
    }

    /// Carries out an output; whether the host has left the network by it.
    async fn carry_out(&mut self, output: Output) -> bool {
        match output {
            Output::Apply => self.apply(false).await,
            Output::Reconcile => self.apply(true).await,
            Output::CheckIn { with_facts } => self.check_in(with_facts),
            Output::Pull => self.pull().await,
            Output::Watch => self.watch(),
            Output::TakeDown => return self.take_down().await,
        }
        false
    }

    /// Applies what changed or, with `everything`, whatever the host lacks.
    async fn apply(&mut self, everything: bool) {
        let outcome = if everything { self.member.reconcile().await } else { self.member.apply().await };
        let input = match outcome {
            Ok(()) => Input::Applied { facts_changed: self.member.has_news() },
            Err(error) => {
                let error = error_chain(&error);
                tracing::warn!(error, network = %self.network(), "cannot apply the View to the tunnel; trying again");
                Input::ApplyFailed
            }
        };
        self.state.handle(input, now());
        self.look_up();
    }

    /// Has names of peers' endpoints be looked up meanwhile, however long that takes.
    fn look_up(&mut self) {
        let (lookups, events) = (self.member.lookups(), self.sender.clone());
        tokio::spawn(async move {
            let mut found = pin!(lookups.ready_chunks(WAITING));
            while let Some(found) = found.next().await {
                if events.send(Event::Resolved(found)).await.is_err() {
                    // The driver has ended.
                    return;
                }
            }
        });
    }

    fn check_in(&self, with_facts: bool) {
        let (control, events) = (self.member.control().clone(), self.sender.clone());
        let network = self.network();
        let at = self.member.applied();
        let facts = with_facts.then(|| self.member.facts());
        let sent = facts.clone();
        let call = tokio::spawn(async move { control.check_in(&network, at, sent).await });
        tokio::spawn(async move {
            let broken = |_| Err(CallError::Answer("reading it failed; this is a bug in netclient".into()));
            let answer = call.await.unwrap_or_else(broken);
            // A driver that has ended does not need the answer.
            let _ = events.send(Event::CheckedIn(answer, facts)).await;
        });
    }

    async fn pull(&mut self) {
        match self.member.pull().await {
            Ok(accepted) => self.accepted(accepted),
            // The next check-in finds the same gap, and asks again.
            Err(error) => {
                tracing::warn!(error = error_chain(&error), network = %self.network(), "cannot get the whole View");
            }
        }
    }

    fn watch(&mut self) {
        let (control, events) = (self.member.control().clone(), self.sender.clone());
        let network = self.network();
        let at = self.member.membership().position;
        let stream = tokio::spawn(async move {
            if let Ok(mut changes) = control.watch(&network, at).await {
                let mut next = Event::StreamOpened;
                while events.send(next).await.is_ok() {
                    match changes.next().await {
                        Some(update) => next = Event::Streamed(update),
                        None => break,
                    }
                }
            }
            let _ = events.send(Event::StreamEnded).await;
        });
        self.stream = Some(stream.abort_handle());
    }

    async fn take_in(&mut self, event: Event) {
        match event {
            Event::CheckedIn(Ok(update), facts) => {
                if let Some(facts) = facts {
                    self.member.record_sent_facts(facts);
                }
                if !self.state.is_reached() {
                    tracing::info!(network = %self.network(), "the server answers");
                }
                self.reported_absent = true;
                self.state.handle(Input::Answered, now());
                if let Some(update) = update {
                    self.take(&update);
                }
            }
            Event::CheckedIn(
                Err(
                    error @ (CallError::Refused(_)
                    | CallError::NonceUsed
                    | CallError::SessionEnded
                    | CallError::OtherServer { .. }
                    | CallError::Answer(_)),
                ),
                _,
            ) => {
                tracing::warn!(%error, network = %self.network(), "a check-in failed; the tunnel stays as it is");
                self.state.handle(Input::Refused, now());
            }
            Event::CheckedIn(Err(error), _) => {
                if self.state.is_reached() {
                    tracing::info!(%error, network = %self.network(), "lost the server; the tunnel stays as it is");
                } else if !std::mem::replace(&mut self.reported_absent, true) {
                    tracing::warn!(%error, network = %self.network(), "cannot reach the server; the tunnel is as it was last, trying again");
                }
                self.state.handle(Input::Failed, now());
            }
            Event::StreamOpened => self.state.handle(Input::StreamOpened, now()),
            Event::Streamed(update) => self.take(&update),
            Event::StreamEnded => self.state.handle(Input::StreamEnded, now()),
            Event::Resolved(found) => {
                if self.member.resolved(&found) {
                    self.state.handle(Input::Resolved, now());
                }
            }
        }
    }

    fn take(&mut self, update: &Update) {
        match self.member.take(update) {
            Ok(accepted) => self.accepted(accepted),
            Err(error) => {
                let error = error_chain(&error);
                tracing::debug!(error, network = %self.network(), "an update does not apply; asking for the whole View");
                self.state.handle(Input::Misfit, now());
            }
        }
    }

    fn accepted(&mut self, accepted: Accepted) {
        let at = now();
        match accepted {
            Accepted::Same => {}
            Accepted::Changed => {
                self.state.set_interval(interval(&self.member), at);
                self.state.handle(Input::Changed, at);
            }
            Accepted::Overtaken => self.state.handle(Input::Overtaken, at),
            Accepted::Removed => self.state.handle(Input::Removed, at),
            Accepted::Forgotten => {
                let error = error_chain(&AgentError::Forgotten(self.network()));
                tracing::warn!(error, network = %self.network(), "the server does not know this node");
            }
        }
    }

    async fn take_down(&mut self) -> bool {
        tracing::info!(network = %self.network(), "the server removed this node; removing everything of the network");
        let outcome = self.member.take_down().await;
        if let Err(error) = &outcome {
            let error = error_chain(error);
            tracing::warn!(error, network = %self.network(), "cannot remove everything of the network; trying again");
            self.state.handle(Input::ApplyFailed, now());
        }
        outcome.is_ok()
    }

    /// Handles a request; whether the host has left the network by it.
    async fn handle(&mut self, request: Request) -> bool {
        let Request { command, answer } = request;
        let outcome = match command {
            Command::CheckIn => self.check_in_now().await,
            Command::Pull => self.pull_now().await,
            Command::Leave { force } => self.member.leave(force).await.map(|()| true),
        };
        let left = outcome.is_ok() && matches!(command, Command::Leave { .. });
        // The caller may be gone.
        let _ = answer.send(outcome);
        left
    }

    async fn check_in_now(&mut self) -> Result<bool, AgentError> {
        let accepted = self.member.check_in(true).await?;
        self.apply_now(accepted).await
    }

    async fn pull_now(&mut self) -> Result<bool, AgentError> {
        let accepted = self.member.pull().await?;
        self.apply_now(accepted).await
    }

    async fn apply_now(&mut self, accepted: Accepted) -> Result<bool, AgentError> {
        self.accepted(accepted);
        match accepted {
            Accepted::Removed => return Err(AgentError::Removed(self.network())),
            Accepted::Forgotten => return Err(AgentError::Forgotten(self.network())),
            Accepted::Changed | Accepted::Same | Accepted::Overtaken => {}
        }
        self.member.reconcile().await?;
        self.state.check_in_soon(now());
        Ok(accepted == Accepted::Changed)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream {
            stream.abort();
        }
    }
}

/// Returns when it is time to end.
pub(crate) async fn ended(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, so the program ends.
    let _ = shutdown.wait_for(|end| *end).await;
}

/// The time, by the clock of this program's timers: tests may have a virtual one.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// How often the nodes of the network should check in: each second to each hour, whatever the server says.
fn interval(member: &Member) -> Duration {
    Duration::from_secs(member.membership().view.interface.check_in.0.clamp(1, 3_600).into())
}
