//! `vectorlay-agent info`: the hardware, for a person or as JSON.

use serde_json::{Value, json};

use crate::cli::Form;
use crate::core::inventory::{Gpu, Hardware, Storage};

/// `storage` is `None` if the data path's file system cannot be read.
pub(super) fn render(hardware: &Hardware, storage: Option<&Storage>, form: Form) -> String {
    match form {
        Form::Text => render_text(hardware, storage),
        Form::Json => render_json(hardware, storage),
    }
}

fn render_text(hardware: &Hardware, storage: Option<&Storage>) -> String {
    let storage = storage.map_or_else(
        || "unknown".to_owned(),
        |s| format!("{}: {} of {} GiB used ({} %)", s.path, s.used_gb, s.total_gb, s.usage_percent),
    );
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let online = hardware
        .cpu_cores
        .map_or_else(|| "unknown number".to_owned(), |count| super::counted(count as usize, "CPU"));
    let rows = [
        ("hostname", known(&hardware.hostname)),
        ("CPU", format!("{}, {online} online", known(&hardware.cpu_model))),
        ("RAM", hardware.ram_gib.map_or_else(|| "unknown".to_owned(), |gib| format!("{gib} GiB"))),
        ("storage", storage),
        ("kernel", format!("{} ({})", known(&hardware.kernel), known(&hardware.arch))),
        ("machine ID", known(&hardware.machine_id)),
        ("boot ID", known(&hardware.boot_id)),
        ("GPUs", hardware.gpus.len().to_string()),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:10}  {value}\n")).collect();
    for gpu in &hardware.gpus {
        let mark = if gpu.judgement().assignable { '✓' } else { '✗' };
        text += &format!("  {} {mark} {}\n{:15} {}\n", gpu.address, gpu.name, "", gpu.summary());
    }
    text
}

/// The hardware's fields of `system_info`.
fn render_json(hardware: &Hardware, storage: Option<&Storage>) -> String {
    let mut value = hardware.described();
    value.insert("storage".into(), json!(storage.map(Storage::described)));
    value.insert("gpus".into(), hardware.gpus.iter().map(gpu_json).collect());
    format!("{:#}\n", Value::Object(value))
}

fn gpu_json(gpu: &Gpu) -> Value {
    let mut described = gpu.described();
    let judgement = gpu.judgement();
    described.insert("assignable".into(), judgement.assignable.into());
    described.insert("reason".into(), json!(judgement.reason));
    described.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::inventory::{Health, Verdict};
    use crate::types::PciAddress;

    fn hardware() -> Hardware {
        let gpu = |address, name: &str, verdict, health| Gpu {
            address: PciAddress::parse(address).unwrap(),
            line: format!("{address} VGA compatible controller: {name}"),
            name: name.to_owned(),
            vendor_id: 0x10de,
            device_id: 0x2204,
            class: 0x0300,
            driver: Some("vfio-pci".into()),
            iommu_group: Some(18),
            companions: Vec::new(),
            numa_node: None,
            device_node: None,
            verdict,
            health,
        };
        let obstructed = || Verdict::Obstructed("bound to nouveau".into());
        Hardware {
            hostname: Some("gpu-07".into()),
            cpu_model: Some("AMD EPYC 7763".into()),
            cpu_cores: Some(128),
            ram_gib: Some(512),
            arch: Some("x86_64".into()),
            kernel: Some("6.1.0".into()),
            gpus: vec![
                gpu("41:00.0", "A", Verdict::Assignable, Health::Ok),
                gpu("42:00.0", "B", Verdict::Assignable, Health::Suspect("link at x4".into())),
                gpu("43:00.0", "C", Verdict::Assignable, Health::Failed("off the bus".into())),
                gpu("44:00.0", "D", obstructed(), Health::Ok),
            ],
            ..Hardware::default()
        }
    }

    fn storage() -> Storage {
        Storage { path: "/data".into(), total_gb: 500, used_gb: 120, usage_percent: 24 }
    }

    #[test]
    fn a_page_for_a_person() {
        let expected = "\
hostname    gpu-07
CPU         AMD EPYC 7763, 128 CPUs online
RAM         512 GiB
storage     /data: 120 of 500 GiB used (24 %)
kernel      6.1.0 (x86_64)
machine ID  unknown
boot ID     unknown
GPUs        4
  0000:41:00.0 ✓ A
                assignable
  0000:42:00.0 ✓ B
                assignable, but suspect: link at x4
  0000:43:00.0 ✗ C
                not assignable: failed: off the bus
  0000:44:00.0 ✗ D
                not assignable: bound to nouveau
";
        assert_eq!(render(&hardware(), Some(&storage()), Form::Text), expected);
    }

    #[test]
    fn the_fields_of_system_info() {
        let text = render(&hardware(), Some(&storage()), Form::Json);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["cpuCores"], &value["ramGb"]), (&json!(128), &json!(512)));
        assert_eq!(value["gpuInfo"][0], "41:00.0 VGA compatible controller: A");
        assert_eq!(
            value["storage"],
            json!({"path": "/data", "total_gb": 500, "used_gb": 120, "usage_percent": 24})
        );
        let words: Vec<(&Value, &Value, &Value)> = value["gpus"]
            .as_array()
            .unwrap()
            .iter()
            .map(|gpu| (&gpu["assignable"], &gpu["health"], &gpu["reason"]))
            .collect();
        let (yes, no) = (&json!(true), &json!(false));
        let expected = [
            (yes, &json!("ok"), &Value::Null),
            (yes, &json!("suspect"), &json!("link at x4")),
            (no, &json!("failed"), &json!("off the bus")),
            (no, &json!("ok"), &json!("bound to nouveau")),
        ];
        assert_eq!(words, expected);
        let first = &value["gpus"][0];
        assert_eq!((&first["pci_address"], &first["vendor_id"]), (&json!("0000:41:00.0"), &json!("10de")));
        assert_eq!((&first["device_id"], &first["class"]), (&json!("2204"), &json!("0300")));
        let text = render(&hardware(), None, Form::Json);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["storage"], Value::Null);
    }
}
