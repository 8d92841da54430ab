//! The host as it is: pure parsers, and readers of files under a root folder.
pub mod gpus;
pub mod health;
pub mod holders;
pub mod iommu;
pub mod kata_config;
pub mod kernel_log;
pub mod lspci;
pub mod pci;
pub mod pci_ids;
pub mod sysfs;
pub mod utilization;
pub mod vfio;
