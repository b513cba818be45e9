//! The protocol between the agent and a device process, over the process's socket.
//!
//! One connection carries one request and its reply, each JSON up to the end of the stream. The two may be of
//! different releases, since a device process outlives the agent that started it: [`DeviceRequest::Hello`],
//! [`DeviceRequest::Stop`], [`DeviceReply::Hello`] and [`DeviceReply::Done`] never change, and [`VERSION`]
//! rises with any change that the other side would misread. A new request is not such a change: a process
//! that does not know it refuses it.

use std::net::SocketAddr;
use std::time::Duration;

use schema::scalars::WireGuardKey;
use serde::{Deserialize, Serialize};

use super::{DeviceState, DeviceStep, Refusal};

/// The version of this protocol.
pub(super) const VERSION: u32 = 2;

/// The longest message either side takes, in bytes: some hundred thousand peers.
pub(super) const LONGEST: u64 = 64 << 20;

/// What the agent asks.
#[derive(Serialize, Deserialize)]
pub(super) enum DeviceRequest {
    /// Which version and interface is this?
    Hello,
    /// [`super::Device::observe`].
    Observe,
    /// [`super::Device::apply`].
    Apply(Vec<DeviceStep>),
    /// [`super::Device::endpoint`].
    Endpoint(WireGuardKey),
    /// [`super::Device::expire_at`].
    #[serde(rename = "Lapse")]
    ExpireAt(Option<Duration>),
    /// [`super::Device::remove`]; the answer comes when the interface is gone.
    Stop,
}

/// What the device process replies; also its first line on standard output, which says whether it is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum DeviceReply {
    /// To [`DeviceRequest::Hello`].
    Hello(Hello),
    /// To [`DeviceRequest::Observe`].
    State(DeviceState),
    /// To [`DeviceRequest::Endpoint`].
    Endpoint(Option<SocketAddr>),
    /// It was done.
    Done,
    /// It was not done.
    Refused(Refusal),
}

/// The version and interface of the process on a socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The [`VERSION`] it speaks.
    pub(super) version: u32,
    /// The interface it serves.
    pub(super) interface: String,
}
