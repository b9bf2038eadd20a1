use std::io::ErrorKind;

use kumiko_kernel::sockets::{tunnel_connect, tunnel_listener};
use rustix::event::PollFlags;
use socket2::SockRef;

use crate::world::{Space, addr, outcome, root, wait_for};

#[test]
fn shards_share_a_port_and_tunnels_stay_awake() {
    if !root() {
        return;
    }
    let node = Space::new("tunnel");
    for (own, address) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let listen = addr(address, 15_008);
        let shards: Vec<_> = (0..3).map(|_| node.netns.within(|| tunnel_listener(listen)).unwrap()).collect();
        for shard in &shards {
            assert_eq!(shard.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        let tunnel = node.netns.within(|| tunnel_connect(listen.ip(), listen)).unwrap();
        assert_eq!(outcome(&tunnel), None, "family {own}");
        assert_eq!(tunnel.local_addr().unwrap().ip(), listen.ip());
        let socket = SockRef::from(&tunnel);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        let accepted = shards.iter().find_map(|shard| shard.accept().ok()).expect("one of them has it").0;
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        // Nobody there.
        let refused = node.netns.within(|| tunnel_connect(listen.ip(), addr(address, 15_009))).unwrap();
        wait_for(&refused, PollFlags::OUT);
        assert_eq!(outcome(&refused), Some(libc::ECONNREFUSED));
    }
}
