//! OPEN: what a dialler asks for.

use std::net::{IpAddr, SocketAddr};

use kumiko_abi::FlowId;

use super::{FrameError, each_field, epoch_of};
use crate::addr;
use crate::tlv::{Reader, Writer};

/// Longest name (a DNS subdomain, a UID).
const MAX_NAME: usize = 253;
/// Longest label digest: SHA-512.
const MAX_DIGEST: usize = 64;
/// Address (16) and port (2).
const ADDRESS: usize = 18;

mod field {
    use crate::tlv::CRITICAL;
    pub(super) const FLOW_ID: u16 = 1 | CRITICAL;
    pub(super) const CLIENT: u16 = 2 | CRITICAL;
    pub(super) const DESTINATION: u16 = 3 | CRITICAL;
    pub(super) const DESTINATION_UID: u16 = 4 | CRITICAL;
    pub(super) const SOURCE_UID: u16 = 5 | CRITICAL;
    pub(super) const LABEL_DIGEST: u16 = 6;
    pub(super) const SERVICE_NAME: u16 = 7;
    pub(super) const SERVICE_ADDRESS: u16 = 8;
    pub(super) const EPOCH: u16 = 9;
}

/// A Service that the client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedService {
    /// `namespace/name`.
    pub name: String,
    /// The address and port that the client connected to.
    pub address: SocketAddr,
}

/// What an OPEN asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Id of the flow, made by the source's node.
    pub flow_id: FlowId,
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The pod to connect to.
    pub destination: SocketAddr,
    /// UID of the workload that the destination address is thought to belong to.
    pub destination_uid: String,
    /// UID of the client's workload.
    pub source_uid: String,
    /// Digest of the client's labels that rules choose by ([`crate::policy::labels`]); empty: not said, or none are.
    pub label_digest: Vec<u8>,
    /// The Service, if one was asked for.
    pub service: Option<AskedService>,
    /// Epoch of the policy by which the dialler's node let it; 0: not said. For people, nothing follows from it.
    pub epoch: u32,
}

impl Open {
    /// The address that the client connected to: the Service's, or the pod's own.
    pub fn asked(&self) -> SocketAddr {
        self.service.as_ref().map_or(self.destination, |s| s.address)
    }

    pub(super) fn encode(&self, w: &mut Writer<'_>) -> Result<(), FrameError> {
        w.field(field::FLOW_ID, &self.flow_id.0)?;
        w.field(field::CLIENT, &address_bytes(self.client))?;
        w.field(field::DESTINATION, &address_bytes(self.destination))?;
        w.field(field::DESTINATION_UID, name_bytes(&self.destination_uid, "the destination UID")?)?;
        w.field(field::SOURCE_UID, name_bytes(&self.source_uid, "the source UID")?)?;
        if !self.label_digest.is_empty() {
            if self.label_digest.len() > MAX_DIGEST {
                return Err(FrameError::Value("the label digest"));
            }
            w.field(field::LABEL_DIGEST, &self.label_digest)?;
        }
        if let Some(service) = &self.service {
            let (namespace, name) = service.name.split_once('/').ok_or(FrameError::Value("the Service's name"))?;
            name_bytes(namespace, "the Service's namespace")?;
            name_bytes(name, "the Service's name")?;
            w.field(field::SERVICE_NAME, service.name.as_bytes())?;
            w.field(field::SERVICE_ADDRESS, &address_bytes(service.address))?;
        }
        if self.epoch != 0 {
            w.field(field::EPOCH, &self.epoch.to_be_bytes())?;
        }
        Ok(())
    }

    pub(super) fn decode(fields: Reader<'_>) -> Result<Self, FrameError> {
        let (mut flow_id, mut client, mut destination) = (None, None, None);
        let (mut destination_uid, mut source_uid) = (None, None);
        let (mut label_digest, mut service_name, mut service_address, mut epoch) = (Vec::new(), None, None, 0);
        each_field(fields, |f| {
            match f.kind {
                field::FLOW_ID => {
                    flow_id = Some(FlowId(f.value.try_into().map_err(|_| FrameError::Value("the flow id"))?));
                }
                field::CLIENT => client = Some(address_of(f.value, "the client's address")?),
                field::DESTINATION => destination = Some(address_of(f.value, "the destination's address")?),
                field::DESTINATION_UID => destination_uid = Some(name_of(f.value, "the destination UID")?),
                field::SOURCE_UID => source_uid = Some(name_of(f.value, "the source UID")?),
                field::LABEL_DIGEST => {
                    if f.value.is_empty() || f.value.len() > MAX_DIGEST {
                        return Err(FrameError::Value("the label digest"));
                    }
                    label_digest = f.value.to_vec();
                }
                field::SERVICE_NAME => service_name = Some(service_name_of(f.value)?),
                field::SERVICE_ADDRESS => service_address = Some(address_of(f.value, "the Service's address")?),
                field::EPOCH => epoch = epoch_of(f.value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let service = match (service_name, service_address) {
            (Some(name), Some(address)) => Some(AskedService { name, address }),
            (None, None) => None,
            _ => return Err(FrameError::Missing("half of the Service")),
        };
        Ok(Self {
            flow_id: flow_id.ok_or(FrameError::Missing("the flow id"))?,
            client: client.ok_or(FrameError::Missing("the client's address"))?,
            destination: destination.ok_or(FrameError::Missing("the destination's address"))?,
            destination_uid: destination_uid.ok_or(FrameError::Missing("the destination UID"))?,
            source_uid: source_uid.ok_or(FrameError::Missing("the source UID"))?,
            label_digest,
            service,
            epoch,
        })
    }
}

fn address_bytes(address: SocketAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let (ip, port) = bytes.split_at_mut(16);
    ip.copy_from_slice(&addr::to_abi(address.ip()));
    port.copy_from_slice(&address.port().to_be_bytes());
    bytes
}

fn address_of(value: &[u8], what: &'static str) -> Result<SocketAddr, FrameError> {
    let Some((ip, &[p0, p1])) = value.split_first_chunk::<16>() else { return Err(FrameError::Value(what)) };
    let ip: IpAddr = addr::from_abi(ip);
    let port = u16::from_be_bytes([p0, p1]);
    // No TCP connection has such an end.
    if port == 0 || ip.is_unspecified() || ip.is_multicast() {
        return Err(FrameError::Value(what));
    }
    Ok(SocketAddr::new(ip, port))
}

/// Names go to logs and terminals: printable ASCII without spaces only.
fn name_bytes<'a>(name: &'a str, what: &'static str) -> Result<&'a [u8], FrameError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fine) {
        return Err(FrameError::Value(what));
    }
    Ok(name.as_bytes())
}

fn name_of(value: &[u8], what: &'static str) -> Result<String, FrameError> {
    let name = std::str::from_utf8(value).map_err(|_| FrameError::Value(what))?;
    name_bytes(name, what)?;
    Ok(name.to_owned())
}

fn service_name_of(value: &[u8]) -> Result<String, FrameError> {
    const WHAT: &str = "the Service's name";
    let text = std::str::from_utf8(value).map_err(|_| FrameError::Value(WHAT))?;
    let (namespace, name) = text.split_once('/').ok_or(FrameError::Value(WHAT))?;
    name_bytes(namespace, WHAT)?;
    name_bytes(name, WHAT)?;
    Ok(text.to_owned())
}
