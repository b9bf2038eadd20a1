//! The programs load, within their budgets, and a second agent takes over what the first one pinned.

use std::{fs, io, os::fd::AsFd, path::Path};

use kumiko_abi::{CommandResult, Stage, programs};
use kumiko_kernel::bpf::{BpfError, Datapath};
use nix::net::if_::if_nametoindex;

use crate::{
    commands::{some_flow, some_key},
    fixture::{alone, config, endpoint, ip, load, load_result, pins},
    world::wait,
};

/// Most instructions that the verifier may walk. Measured on 6.18: docs/performance.md; the rest is room
/// for other kernels' verifiers and small changes.
const BUDGETS: [(&str, u32); 5] = [
    (programs::POD_INGRESS, 200_000),
    (programs::POD_EGRESS, 150_000),
    (programs::AGENT_INGRESS, 12_000),
    (programs::AGENT_LOOKUP, 1_500),
    (programs::FLOW_COMMAND, 4_000),
];

#[test]
fn programs_keep_their_budgets() {
    alone("programs_keep_their_budgets", |dir| {
        let datapath = load(dir);
        let verified = datapath.verified_instructions();
        println!("{verified:?}");
        for (name, budget) in BUDGETS {
            let (_, count) = verified.iter().find(|(program, _)| *program == name).unwrap();
            assert!((1..=budget).contains(count), "{name} took {count} instructions of {budget}");
        }
    });
}

#[test]
fn log_statements_load_too() {
    alone("log_statements_load_too", |dir| {
        let options =
            kumiko_kernel::bpf::LoadOptions { object: kumiko_kernel::bpf::ObjectSource::Embedded, pin_dir: pins(dir) };
        let datapath = Datapath::load_with_log(&options, 5).unwrap();
        let _log = datapath.logger().unwrap();
    });
}

fn veth(name: &str) -> u32 {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ip(&format!("link set {name} up"));
    if_nametoindex(name).unwrap()
}

fn links(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(pins(dir).join("links"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn attach_all(datapath: &Datapath, pod: u32, agent: u32) {
    datapath.attach_pod(pod).unwrap();
    datapath.attach_agent_veth(agent).unwrap();
    datapath.attach_lookup(fs::File::open("/proc/thread-self/ns/net").unwrap().as_fd()).unwrap();
}

#[test]
fn a_second_agent_takes_over() {
    alone("a_second_agent_takes_over", |dir| {
        let (pod, agent) = (veth("pod0"), veth("agent0"));
        let first = load(dir);
        attach_all(&first, pod, agent);
        first.maps().set_config(&config(agent)).unwrap();
        first.maps().init_use(pod).unwrap();
        first.maps().set_endpoint(pod, &endpoint(7, Stage::Strict)).unwrap();
        let key = some_key();
        assert_eq!(first.commands().create(&key, &some_flow(pod)).unwrap(), CommandResult::Done);
        let before = links(dir);
        drop(first);

        let second = load(dir);
        assert_eq!(second.attached().unwrap(), [pod]);
        assert_eq!(second.maps().config().unwrap(), config(agent));
        assert_eq!(second.maps().endpoints().unwrap(), [(pod, endpoint(7, Stage::Strict))]);
        assert_eq!(second.flows().get(&key).unwrap().src_ifindex, pod);
        assert_eq!(second.maps().endpoint_use(pod).unwrap().unwrap().flows, 1);
        // Attaching again changes nothing but the program.
        attach_all(&second, pod, agent);
        assert_eq!(links(dir), before);
        second.maps().init_use(pod).unwrap();
        assert_eq!(second.maps().endpoint_use(pod).unwrap().unwrap().flows, 1, "use survives");

        assert!(!second.restore_agent_veth(agent).unwrap());
        fs::remove_file(pins(dir).join(format!("links/agent-{agent}-in"))).unwrap();
        // The kernel takes it off in its own time, and until then the program is there already.
        assert!(wait("the link is gone", || match second.restore_agent_veth(agent) {
            Err(BpfError::Attach { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => None,
            other => Some(other.unwrap()),
        }));
        assert_eq!(links(dir), before);
        let here = fs::File::open("/proc/thread-self/ns/net").unwrap();
        assert!(!second.restore_lookup(here.as_fd()).unwrap());
        // Unpinned, and detached: the link is there and looks nothing up.
        fs::remove_file(pins(dir).join("links/lookup")).unwrap();
        assert!(second.restore_lookup(here.as_fd()).unwrap());
        let pin = pins(dir).join("links/lookup");
        let detached = std::process::Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin).status();
        assert!(detached.unwrap().success());
        assert!(second.restore_lookup(here.as_fd()).unwrap() && !second.restore_lookup(here.as_fd()).unwrap());
        assert_eq!(links(dir), before);

        // The interface goes: its pins go with the next agent.
        ip("link del pod0");
        assert_eq!(second.attached().unwrap(), Vec::<u32>::new());
        drop(second);
        let third = load(dir);
        assert_eq!(links(dir), [format!("agent-{agent}-in"), "lookup".to_owned()]);
        third.detach_pod(pod).unwrap();
        drop(third);

        Datapath::remove_everything(&pins(dir)).unwrap();
        assert!(!dir.join("bpf/kumiko").exists());
        Datapath::remove_everything(&pins(dir)).unwrap();
    });
}

#[test]
fn detached_hooks_can_be_attached_again_at_once() {
    alone("detached_hooks_can_be_attached_again_at_once", |dir| {
        let (pod, agent) = (veth("pod0"), veth("agent0"));
        for _ in 0..2 {
            let datapath = load(dir);
            for _ in 0..50 {
                attach_all(&datapath, pod, agent);
                datapath.detach_pod(pod).unwrap();
            }
            drop(datapath);
            Datapath::remove_everything(&pins(dir)).unwrap();
        }
    });
}

#[test]
fn filters_where_links_are_missing() {
    alone("filters_where_links_are_missing", |dir| {
        let (pod, agent) = (veth("pod0"), veth("agent0"));
        let first = load(dir);
        first.force_clsact();
        attach_all(&first, pod, agent);
        assert_eq!(first.attached().unwrap(), [pod]);
        drop(first);
        let shown = || {
            let output = std::process::Command::new("tc").args(["filter", "show", "dev", "pod0", "ingress"]).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        assert_eq!(shown().matches("name pod_ingress").count(), 1, "{}", shown());
        let second = load(dir);
        second.force_clsact();
        attach_all(&second, pod, agent);
        assert_eq!(shown().matches("name pod_ingress").count(), 1, "replaced, not added: {}", shown());

        // Somebody else takes them off: while an agent runs, and while none does.
        let take_off = |device| {
            let done = std::process::Command::new("tc").args(["qdisc", "del", "dev", device, "clsact"]).status();
            assert!(done.unwrap().success());
        };
        take_off("pod0");
        assert_eq!(second.attached().unwrap(), Vec::<u32>::new());
        second.attach_pod(pod).unwrap();
        assert_eq!((second.attached().unwrap(), shown().matches("name pod_ingress").count()), (vec![pod], 1));
        assert!(!second.restore_agent_veth(agent).unwrap());
        take_off("agent0");
        assert!(second.restore_agent_veth(agent).unwrap() && !second.restore_agent_veth(agent).unwrap());
        drop(second);
        take_off("pod0");
        let second = load(dir);
        second.force_clsact();
        assert_eq!(second.attached().unwrap(), Vec::<u32>::new());
        second.attach_pod(pod).unwrap();
        assert_eq!(second.attached().unwrap(), [pod]);
        second.detach_pod(pod).unwrap();
        assert_eq!(shown().matches("name pod_ingress").count(), 0);
        assert_eq!(second.attached().unwrap(), Vec::<u32>::new());

        // A pod goes while no agent runs.
        second.attach_pod(pod).unwrap();
        drop(second);
        ip("link del pod0");
        let third = load(dir);
        assert_eq!(links(dir), [format!("clsact-agent-{agent}-in"), "lookup".to_owned()]);
        drop(third);
        Datapath::remove_everything(&pins(dir)).unwrap();
    });
}

#[test]
fn a_map_of_another_layout_is_refused() {
    alone("a_map_of_another_layout_is_refused", |dir| {
        let datapath = load(dir);
        drop(datapath);
        // Two maps change places: as good as a layout of another version.
        let pins = pins(dir);
        fs::rename(pins.join("FLOWS"), pins.join("x")).unwrap();
        fs::rename(pins.join("ADDRS"), pins.join("FLOWS")).unwrap();
        let error = load_result(dir).err().unwrap();
        assert!(matches!(error, BpfError::Layout { .. }), "{error}");
        assert!(error.to_string().contains("cleanup"));
    });
}

extern "C" fn nothing(_: std::ffi::c_int) {}

/// The verifier gives up a program when a signal comes for its thread.
#[test]
fn signals_do_not_keep_programs_out() {
    use nix::libc::{SIGUSR2, pthread_kill, pthread_self};
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    alone("signals_do_not_keep_programs_out", |dir| {
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
        // SAFETY: it cannot fail.
        let loading = unsafe { pthread_self() };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..20 {
                    // SAFETY: the thread waits for this one's end.
                    assert_eq!(unsafe { pthread_kill(loading, SIGUSR2) }, 0);
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            });
            load(dir);
        });
    });
}
