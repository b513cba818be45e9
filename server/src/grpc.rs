//! The agents' service over gRPC: decodes, calls the service, encodes. No decisions.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::ConnectInfo;
use futures_util::Stream;
use proto::convert::Position;
use proto::wire::agent_server::{Agent, AgentServer};
use proto::wire::{self, Update};
use schema::scalars::{NetworkName, PublicKey};
use schema::snapshot::Revision;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::error::Error;
use crate::service::Service;
use crate::state::State;

/// The largest request; an agent's are far smaller.
const MAX_REQUEST: usize = 64 << 10;

/// The agents' routes.
pub fn router(service: Service) -> Router {
    let agent = AgentServer::new(Adapter { service }).max_decoding_message_size(MAX_REQUEST);
    tonic::service::Routes::new(agent).prepare().into_axum_router()
}

struct Adapter {
    service: Service,
}

fn from<T>(request: &Request<T>) -> Option<IpAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(from)| from.ip())
}

fn network(name: &str) -> Result<NetworkName, Error> {
    name.parse().map_err(|why| Error::BadRequest(format!("{name:?} is no network: {why}")))
}

impl Adapter {
    /// The identity whose session a request belongs to.
    fn identity<T>(&self, request: &Request<T>) -> Result<PublicKey, Error> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer "));
        self.service.identity(token.ok_or(Error::Unauthenticated("a session is needed"))?)
    }
}

#[tonic::async_trait]
impl Agent for Adapter {
    async fn challenge(&self, _: Request<wire::ChallengeRequest>) -> Result<Response<wire::ChallengeResponse>, Status> {
        Ok(Response::new(self.service.challenge()))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let from = from(&request);
        Ok(Response::new(self.service.join(request.into_inner(), from).await?))
    }

    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionResponse>, Status> {
        Ok(Response::new(self.service.open_session(request.get_ref())?))
    }

    async fn get_peers(&self, request: Request<wire::GetPeersRequest>) -> Result<Response<Update>, Status> {
        let identity = self.identity(&request)?;
        Ok(Response::new(self.service.whole(&network(&request.get_ref().network)?, &identity)?))
    }

    async fn check_in(
        &self,
        request: Request<wire::CheckInRequest>,
    ) -> Result<Response<wire::CheckInResponse>, Status> {
        let identity = self.identity(&request)?;
        let from = from(&request);
        let wire::CheckInRequest { network: name, epoch, revision, facts } = request.into_inner();
        let at = Position { epoch, revision: Revision(revision) };
        let update = self.service.check_in(&network(&name)?, &identity, at, facts.as_ref(), from).await?;
        Ok(Response::new(wire::CheckInResponse { update }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Update, Status>> + Send>>;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let identity = self.identity(&request)?;
        let wire::WatchRequest { network: name, epoch, revision } = request.into_inner();
        let at = Position { epoch, revision: Revision(revision) };
        let (send, updates) = mpsc::channel(1);
        let watcher = Watcher { service: self.service.clone(), network: network(&name)?, identity, at, send };
        tokio::spawn(watcher.run(self.service.states()));
        Ok(Response::new(Box::pin(ReceiverStream::new(updates))))
    }

    async fn leave(&self, request: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        self.service.leave(request.get_ref()).await?;
        Ok(Response::new(wire::LeaveResponse {}))
    }
}

/// One node's stream: sends what the node lacks whenever the state moves.
struct Watcher {
    service: Service,
    network: NetworkName,
    identity: PublicKey,
    at: Position,
    send: mpsc::Sender<Result<Update, Status>>,
}

impl Watcher {
    async fn run(mut self, mut states: watch::Receiver<Arc<State>>) {
        self.service.stream(&self.network, &self.identity, self.at.revision, 1);
        loop {
            let state = states.borrow_and_update().clone();
            if self.tell(&state).await.is_err() {
                break;
            }
            tokio::select! {
                moved = states.changed() => if moved.is_err() { break },
                () = self.send.closed() => break,
            }
        }
        self.service.stream(&self.network, &self.identity, self.at.revision, -1);
    }

    /// Sends what is lacking; an error where the stream has ended.
    async fn tell(&mut self, state: &State) -> Result<(), ()> {
        match self.service.lacking(state, &self.network, &self.identity, self.at) {
            Ok(None) => Ok(()),
            Ok(Some(update)) => {
                self.at = Position { epoch: update.epoch, revision: Revision(update.to) };
                self.send.send(Ok(update)).await.map_err(drop)
            }
            Err(error) => {
                let _ = self.send.send(Err(error.into())).await;
                Err(())
            }
        }
    }
}
