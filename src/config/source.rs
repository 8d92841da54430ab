//! Where a setting's value came from.

use std::path::PathBuf;

use super::table::Setting;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    Flag,
    /// `VECTORLAY_…`.
    Environment,
    /// `vectorlay.…=`.
    KernelCommandLine,
    /// A key of this configuration file.
    File(PathBuf),
    /// An environment variable that other programs use too (`HTTPS_PROXY`).
    Variable(&'static str),
    /// The content of this file (a token).
    Content(PathBuf),
    /// The token file, which exists but has no usable token.
    Unusable(PathBuf),
}

impl Source {
    /// For a person, as the source of `setting`.
    pub fn describe(&self, setting: &Setting) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::Flag => format!("--{}", setting.flag()),
            Self::Environment => setting.variable(),
            Self::KernelCommandLine => format!("vectorlay.{} on the kernel command line", setting.name),
            Self::File(file) => format!("{} in {}", setting.name, file.display()),
            Self::Variable(name) => (*name).to_owned(),
            Self::Content(file) => format!("the file {}", file.display()),
            Self::Unusable(file) => format!("the file {}, which cannot be used", file.display()),
        }
    }
}
