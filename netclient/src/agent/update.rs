//! Checking in and pulling: what the server sends is accepted and applied, once.

use schema::scalars::NetworkName;

use super::member::Member;
use super::{Agent, AgentError};
use crate::membership::Accepted;

impl Agent {
    /// Checks in once, and applies what the server sends. Returns whether anything was new.
    ///
    /// The tunnel is brought up from the state on the disk before the server is asked.
    pub async fn check_in(&self, network: &NetworkName) -> Result<bool, AgentError> {
        let mut member = self.member(network)?;
        let up = member.reconcile().await;
        let accepted = member.check_in(true).await?;
        if accepted == Accepted::Same {
            up?;
        }
        Self::finish(member, accepted).await
    }

    /// Asks for the whole View and applies it. Returns whether anything was new.
    pub async fn pull(&self, network: &NetworkName) -> Result<bool, AgentError> {
        let mut member = self.member(network)?;
        let accepted = member.pull().await?;
        Self::finish(member, accepted).await
    }

    /// Applies what the server sent, and reports that; whether it was new. What has changed again by then is
    /// applied, and reported by the next check-in.
    async fn finish(mut member: Member, mut accepted: Accepted) -> Result<bool, AgentError> {
        let news = accepted == Accepted::Changed;
        if news {
            member.apply().await?;
            accepted = member.check_in(true).await?;
        }
        let network = member.membership().network.clone();
        match accepted {
            Accepted::Removed => {
                member.take_down().await?;
                Err(AgentError::Removed(network))
            }
            Accepted::Forgotten => Err(AgentError::Forgotten(network)),
            Accepted::Same | Accepted::Overtaken | Accepted::Changed => {
                member.apply().await?;
                member.settle_names().await;
                Ok(news)
            }
        }
    }

    pub(super) fn member(&self, network: &NetworkName) -> Result<Member, AgentError> {
        if self.directory.membership(network)?.is_none() {
            return Err(AgentError::NotMember(network.clone()));
        }
        Member::open(self.clone(), network)
    }
}
