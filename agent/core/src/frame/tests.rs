use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kumiko_abi::FlowId;
use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    let v4 = (1_u32..0xdfff_ffff).prop_map(|n| IpAddr::V4(Ipv4Addr::from(n)));
    let v6 = any::<u64>().prop_map(|n| IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(n) | 1)));
    (prop_oneof![v4, v6], 1_u16..).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][-a-z0-9.]{0,60}"
}

fn open() -> impl Strategy<Value = Open> {
    let service = proptest::option::of((name(), name(), address()));
    let digest = proptest::collection::vec(any::<u8>(), 0..65);
    (any::<[u8; 16]>(), address(), address(), name(), name(), digest, service, any::<u32>()).prop_map(
        |(id, client, destination, destination_uid, source_uid, label_digest, service, epoch)| Open {
            flow_id: FlowId(id),
            client,
            destination,
            destination_uid,
            source_uid,
            label_digest,
            service: service.map(|(ns, n, address)| AskedService { name: format!("{ns}/{n}"), address }),
            epoch,
        },
    )
}

fn frame() -> impl Strategy<Value = Frame> {
    let flow = 1_u32..;
    let side = prop_oneof![Just(Side::Unknown), Just(Side::Agent), Just(Side::Destination)];
    prop_oneof![
        (flow.clone(), open()).prop_map(|(flow, open)| Frame::Open { flow, open: Box::new(open) }),
        (flow.clone(), any::<u32>()).prop_map(|(flow, epoch)| Frame::Opened { flow, epoch }),
        (flow.clone(), any::<u16>(), any::<u16>(), side)
            .prop_map(|(flow, reason, errno, side)| Frame::Refused { flow, refused: Refused { reason, errno, side } }),
        flow.clone().prop_map(|flow| Frame::Fin { flow }),
        (flow.clone(), any::<u16>()).prop_map(|(flow, reason)| Frame::Reset { flow, reason }),
        any::<u32>().prop_map(|last| Frame::Drain { last }),
        flow.prop_map(|flow| Frame::Urgent { flow }),
        (0x90_u8..).prop_map(Frame::Ignored),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(frame in frame()) {
        let mut bytes = [0; MAX_FRAME];
        let len = frame.encode(&mut bytes).unwrap();
        prop_assert_eq!(Frame::decode(&bytes[..len]).unwrap(), frame.clone());
        // Every shorter buffer is refused, never written beyond; every cut frame is refused or is a shorter frame.
        prop_assert!(frame.encode(&mut bytes[..len - 1]).is_err());
    }

    #[test]
    fn cut_or_changed_frames_never_panic(frame in frame(), cut in any::<proptest::sample::Index>(), at in any::<proptest::sample::Index>(), to: u8) {
        let mut bytes = [0; MAX_FRAME];
        let len = frame.encode(&mut bytes).unwrap();
        let _ = Frame::decode(&bytes[..cut.index(len)]);
        bytes[at.index(len)] = to;
        if let Ok(other) = Frame::decode(&bytes[..len]) {
            let mut again = [0; MAX_FRAME];
            let n = other.encode(&mut again).unwrap();
            prop_assert_eq!(Frame::decode(&again[..n]).unwrap(), other);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn unknown_optional_fields_are_skipped_and_critical_ones_refused(frame in frame(), kind in 40_u16..0x7fff, value in proptest::collection::vec(any::<u8>(), 0..20)) {
        prop_assume!(!matches!(frame, Frame::Ignored(_)));
        let mut bytes = [0; MAX_FRAME];
        let len = frame.encode(&mut bytes).unwrap();
        let mut add = |kind| {
            let mut w = Writer::new(&mut bytes[len..]);
            w.field(kind, &value).unwrap();
            let end = len + w.written();
            Frame::decode(&bytes[..end])
        };
        prop_assert_eq!(add(kind).unwrap(), frame);
        prop_assert_eq!(add(kind | tlv::CRITICAL), Err(FrameError::UnknownField(kind | tlv::CRITICAL)));
    }
}

#[test]
fn refuses_what_is_not_ours() {
    assert_eq!(Frame::decode(&[]), Err(FrameError::Short(0)));
    assert_eq!(Frame::decode(&[2, 4, 0, 0, 0, 1]), Err(FrameError::Version(2)));
    assert_eq!(Frame::decode(&[1, 99, 0, 0, 0, 1]), Err(FrameError::Kind(99)));
    assert_eq!(Frame::decode(&[1, 4, 0, 0, 0, 0]), Err(FrameError::NoFlow));
    assert_eq!(Frame::decode(&[1, 3, 0, 0, 0, 1]), Err(FrameError::Missing("the reason")));
    let twice = [1, 3, 0, 0, 0, 1, 0x80, 1, 0, 2, 0, 9, 0x80, 1, 0, 2, 0, 9];
    assert_eq!(Frame::decode(&twice), Err(FrameError::Twice(0x8001)));
    assert_eq!(Frame::decode(&[1; MAX_FRAME + 1]), Err(FrameError::Long(MAX_FRAME + 1)));
}

#[test]
fn largest_open_fits() {
    let long = "a".repeat(253);
    let open = Open {
        flow_id: FlowId([7; 16]),
        client: "[fd00::1]:40000".parse().unwrap(),
        destination: "[fd00::2]:443".parse().unwrap(),
        destination_uid: long.clone(),
        source_uid: long.clone(),
        label_digest: vec![1; 64],
        service: Some(AskedService { name: format!("{long}/{long}"), address: "[fd00::3]:80".parse().unwrap() }),
        epoch: u32::MAX,
    };
    let mut bytes = [0; MAX_FRAME];
    Frame::Open { flow: 1, open: Box::new(open) }.encode(&mut bytes).unwrap();
}
