//! Service translation on the nodes, as kube-proxy does it: DNAT after the veth's ingress hook, with nftables.
//!
//! It stays in place under the mesh too. What the mesh captures never reaches it; without the mesh it is the twin that
//! every exchange is compared with.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::Result;

use crate::command;
use crate::netns::Netns;
use crate::spec::LabSpec;
use crate::topology::netns_name;

/// Writes the translation of every Service into every node.
pub fn install(id: &str, spec: &LabSpec) -> Result<()> {
    if spec.services.is_empty() {
        return Ok(());
    }
    let rules = ruleset(spec);
    for node in 1..=spec.nodes {
        let ns = Netns::named(netns_name(id, &format!("n{node}")));
        ns.within(|| command::run_with_input("nft", &["-f", "-"], &rules).map(drop))?;
    }
    Ok(())
}

/// The nftables rules of the spec's Services.
pub fn ruleset(spec: &LabSpec) -> String {
    let (mut dnat, mut reject, mut masquerade) = (String::new(), String::new(), String::new());
    for (index, service) in spec.services.iter().enumerate() {
        let backends: Vec<[IpAddr; 2]> = (0..spec.pods.len())
            .filter(|pod| spec.pods.get(*pod).is_some_and(|pod| service.pods.contains(&pod.name)))
            .map(|pod| spec.pod_ips(pod))
            .collect();
        for (family, word) in [(0, "ip"), (1, "ip6")] {
            let Some(vip) = LabSpec::service_ips(index).get(family).copied() else { continue };
            let ips: Vec<IpAddr> = backends.iter().filter_map(|ips| ips.get(family).copied()).collect();
            for (port, to) in &service.ports {
                let chain = if ips.is_empty() { &mut reject } else { &mut dnat };
                let _ = writeln!(chain, "    {word} daddr {vip} tcp dport {port} {}", action(word, &ips, *to));
                if spec.datagrams && !ips.is_empty() {
                    let _ = writeln!(chain, "    {word} daddr {vip} udp dport {port} {}", action(word, &ips, *to));
                }
            }
            for ip in &ips {
                // A pod that reaches itself through a Service would answer itself directly otherwise.
                let _ = writeln!(masquerade, "    ct status dnat {word} saddr {ip} {word} daddr {ip} masquerade");
            }
        }
    }
    format!(
        "table inet kumiko_lab {{\n  chain empty {{\n    type filter hook prerouting priority -101;\n{reject}  }}\n  \
         chain prerouting {{\n    type nat hook prerouting priority dstnat;\n{dnat}  }}\n  \
         chain output {{\n    type nat hook output priority -100;\n{dnat}  }}\n  \
         chain postrouting {{\n    type nat hook postrouting priority srcnat;\n{masquerade}  }}\n}}\n"
    )
}

fn action(family: &str, ips: &[IpAddr], port: u16) -> String {
    match ips {
        [] => "reject with tcp reset".to_owned(),
        [one] if family == "ip" => format!("dnat ip to {one}:{port}"),
        [one] => format!("dnat ip6 to [{one}]:{port}"),
        many => {
            let map: Vec<String> = many.iter().enumerate().map(|(n, ip)| format!("{n} : {ip} . {port}")).collect();
            format!("dnat {family} addr . port to numgen inc mod {} map {{ {} }}", many.len(), map.join(", "))
        }
    }
}
