use std::io::{Read, Write};

use kumiko_kernel::sockets::{at_mark, connect_as, plain_side, send_oob};
use rustix::event::PollFlags;

use crate::world::{CLIENT, Node, POD, addr, eventually, outcome, wait_for};

#[test]
fn the_urgent_byte_is_found_and_passed_on() {
    let Some(node) = Node::new("oob") else { return };
    let listener = node.pod.listen(&addr(POD[0], 80).to_string());
    let to = listener.local_addr().unwrap();
    let mut upstream = node.agent.netns.within(|| connect_as(addr(CLIENT[0], 40_000), to)).unwrap();
    assert_eq!(outcome(&upstream), None);
    upstream.set_nonblocking(false).unwrap();
    let (mut served, _) = listener.accept().unwrap();

    // From the pod: bytes before, the urgent one, bytes after. A read stops in front of the mark.
    served.write_all(b"before").unwrap();
    assert_eq!(send_oob(&served, b"!").unwrap(), 1);
    served.write_all(b"after").unwrap();
    wait_for(&upstream, PollFlags::PRI);
    let mut buffer = [0; 64];
    let mut seen: Vec<u8> = Vec::new();
    while !at_mark(&upstream).unwrap() {
        let read = upstream.read(&mut buffer).unwrap();
        seen.extend(&buffer[..read]);
    }
    assert_eq!(seen, b"before");
    upstream.read_exact(&mut buffer[..1]).unwrap();
    assert_eq!(buffer[0], b'!');
    assert!(!at_mark(&upstream).unwrap());
    upstream.read_exact(&mut buffer[..5]).unwrap();
    assert_eq!(&buffer[..5], b"after");

    // To the pod.
    plain_side(&served).unwrap();
    upstream.write_all(b"x").unwrap();
    send_oob(&upstream, b"?").unwrap();
    wait_for(&served, PollFlags::PRI);
    served.read_exact(&mut buffer[..1]).unwrap();
    eventually("the pod is at the mark", || at_mark(&served).unwrap());
    served.read_exact(&mut buffer[..1]).unwrap();
    assert_eq!(buffer[0], b'?');
}
