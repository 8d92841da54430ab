//! The output of `vfio status`.

use std::path::Path;

use serde_json::{Value, json};

use crate::host::files;
use crate::host::gpus::{Inventory, Seen};
use crate::host::health::Reset;

/// The IOMMU's state, then each GPU's.
pub(super) fn text(inventory: &Inventory, root: &Path) -> String {
    let mut lines = vec![match inventory.iommu.advice() {
        None => "IOMMU: on".to_owned(),
        Some(advice) => format!("IOMMU: off; {advice}"),
    }];
    let missing = inventory.iommu.missing_parameters();
    if !missing.is_empty() {
        lines.push(format!("missing kernel parameters: {missing}"));
    }
    let unsafe_interrupts = root.join("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
    if files::value(&unsafe_interrupts).is_some_and(|text| text == "Y") {
        lines.push(
            "warning: vfio_iommu_type1.allow_unsafe_interrupts lets a guest send interrupts to the host"
                .to_owned(),
        );
    }
    if !inventory.holders.complete {
        lines.push("note: run this as root to see which GPUs are in use".to_owned());
    }
    if inventory.gpus.is_empty() {
        lines.push("no NVIDIA or AMD GPU found".to_owned());
    }
    lines.extend(inventory.gpus.iter().map(gpu_status));
    lines.join("\n") + "\n"
}

/// The same as JSON.
pub(super) fn json(inventory: &Inventory) -> String {
    let gpus: Vec<_> = inventory.gpus.iter().map(gpu_json).collect();
    let iommu = json!({"on": inventory.iommu.on, "advice": inventory.iommu.advice()});
    format!("{:#}\n", json!({"iommu": iommu, "complete": inventory.holders.complete, "gpus": gpus}))
}

fn gpu_json(seen: &Seen) -> Value {
    let gpu = &seen.gpu;
    let judgement = gpu.judgement();
    let members = seen.members.iter().map(|m| {
        json!({"pci_address": m.address.to_string(), "class": format!("{:04x}", m.class), "driver": m.driver})
    });
    let reset = match &seen.reading.reset {
        Reset::Alone(methods) => methods,
        Reset::WithCard => "card",
        Reset::Split | Reset::None => "none",
    };
    let more = json!({
        "members": members.collect::<Vec<_>>(),
        "boot_display": seen.function.boot_display,
        "virtual_functions": seen.function.sriov.map(|s| s.on),
        "link": seen.reading.link.map(|l| l.to_string()),
        "best_link": seen.reading.best.map(|l| l.to_string()),
        "power_state": seen.reading.power,
        "reset": reset,
        "device_node": gpu.device_node,
        "assignable": judgement.assignable,
        "reason": judgement.reason,
    });
    let mut described = gpu.described();
    if let Value::Object(more) = more {
        described.extend(more);
    }
    described.into()
}

/// A GPU in two lines: its verdict, then the details.
fn gpu_status(seen: &Seen) -> String {
    let gpu = &seen.gpu;
    let mut facts = vec![format!("driver {}", gpu.driver.as_deref().unwrap_or("none"))];
    if let Some(group) = gpu.iommu_group {
        let others = seen.members.iter().filter(|m| !m.is_bridge());
        let others: Vec<String> = others
            .map(|m| format!("{} {}", m.label(), m.driver.as_deref().unwrap_or("without a driver")))
            .collect();
        let with = if others.is_empty() { String::new() } else { format!(" with {}", others.join(", ")) };
        facts.push(format!("IOMMU group {group}{with}"));
    }
    facts.extend(gpu.numa_node.map(|n| format!("NUMA node {n}")));
    facts.extend(seen.function.boot_display.then(|| "boot display".to_owned()));
    facts.extend(seen.function.sriov.map(|s| format!("{} of {} virtual functions on", s.on, s.most)));
    facts.extend(seen.function.physical.map(|p| format!("virtual function of {p}")));
    if let (Some(link), Some(best)) = (seen.reading.link, seen.reading.best) {
        facts.push(format!("link {link} of {best}"));
    }
    facts.extend(seen.reading.power.clone());
    facts.push(match &seen.reading.reset {
        Reset::Alone(methods) => format!("reset by {methods}"),
        Reset::WithCard => "reset with its whole card".to_owned(),
        Reset::Split | Reset::None => "no reset".to_owned(),
    });
    facts.push(format!("health {}", gpu.health.as_str()));
    format!("{} {}: {}\n    {}", gpu.address, gpu.name, gpu.summary(), facts.join(", "))
}
