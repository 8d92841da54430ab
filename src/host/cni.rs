//! CNI (Container Network Interface): the plugins with which nerdctl connects a container to its network, and that
//! network's configuration. nerdctl's OCI hook runs them when a container starts; without them every start fails.

use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::de::DeTable;

use super::files;

/// nerdctl's own settings for root.
const NERDCTL_TOML: &str = "/etc/nerdctl/nerdctl.toml";
/// Where nerdctl looks for the plugins: the first of these that exists (its `defaults.CNIPath`).
const FOLDERS: [&str; 5] =
    ["/opt/cni/bin", "/usr/local/libexec/cni", "/usr/local/lib/cni", "/usr/libexec/cni", "/usr/lib/cni"];
/// Where networks are configured.
const NETWORKS: &str = "/etc/cni/net.d";
/// nerdctl's default network, and what it makes that of (its `netutil`): it writes the configuration itself.
const DEFAULT_NETWORK: &str = "bridge";
const DEFAULT_PLUGINS: [&str; 5] = ["bridge", "firewall", "host-local", "portmap", "tuning"];
/// The plugins that hand out addresses may be named in a network's `ipam`.
const INSTALL: &str = "install the CNI plugins (they are in the archive nerdctl-full; the package is containernetworking-plugins)";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugins {
    /// The folder in which nerdctl looks.
    pub folder: PathBuf,
    /// Why no container can be connected to `network`, with what to do.
    pub obstacle: Option<String>,
}

/// Looks for the plugins of `network`, a name or `None` for nerdctl's default; `None` when containers on it need none.
/// `folder`: where the agent's own setting says that they are.
pub fn look(
    root: &Path,
    network: Option<&str>,
    namespace: Option<&str>,
    folder: Option<&Path>,
) -> Option<Plugins> {
    let network = network.unwrap_or(DEFAULT_NETWORK);
    if matches!(network, "none" | "host") || network.starts_with("container:") || network.starts_with("ns:") {
        return None;
    }
    let settings = files::text(&files::under(root, NERDCTL_TOML)).unwrap_or_default();
    let setting = |key: &str| setting(&settings, key).map(PathBuf::from);
    let exists = |folder: &&&str| files::under(root, folder).exists();
    let folder = folder.map(Path::to_path_buf).or_else(|| setting("cni_path"));
    let folder = folder.unwrap_or_else(|| FOLDERS.iter().find(exists).unwrap_or(&FOLDERS[0]).into());
    let configurations = setting("cni_netconfpath").unwrap_or_else(|| NETWORKS.into());
    let obstacle = obstacle(root, network, namespace, &folder, &configurations);
    Some(Plugins { folder, obstacle })
}

fn obstacle(
    root: &Path,
    network: &str,
    namespace: Option<&str>,
    folder: &Path,
    configurations: &Path,
) -> Option<String> {
    let wanted = match configured(root, configurations, network, namespace) {
        Some(plugins) => plugins,
        None if network == DEFAULT_NETWORK => DEFAULT_PLUGINS.map(str::to_owned).to_vec(),
        None => {
            return Some(format!(
                "the network {network} is not in {}: run `nerdctl network create {network}`, or correct the setting \
                 network",
                configurations.display()
            ));
        }
    };
    let missing: Vec<String> =
        wanted.into_iter().filter(|plugin| !files::is_program(root, &folder.join(plugin))).collect();
    let shown = folder.display();
    match missing.as_slice() {
        [] => None,
        _ if !files::under(root, folder).is_dir() => {
            Some(format!("the folder of CNI plugins {shown} does not exist: {INSTALL}"))
        }
        missing => Some(format!(
            "{} missing in {shown}, the first folder in which nerdctl looks: {INSTALL}",
            missing.join(", ")
        )),
    }
}

/// The plugins that the network's configuration names. nerdctl keeps those that it makes as
/// `nerdctl-NAME.conflist`, since 2.0 in a folder for each namespace but `default`.
fn configured(root: &Path, folder: &Path, network: &str, namespace: Option<&str>) -> Option<Vec<String>> {
    let own = namespace.filter(|namespace| *namespace != "default").map(|namespace| folder.join(namespace));
    let folders = own.into_iter().chain([folder.to_owned()]);
    folders
        .flat_map(|folder| {
            let folder = files::under(root, folder);
            files::names(&folder).into_iter().map(move |name| folder.join(name))
        })
        .filter(|file| file.extension().is_some_and(|ending| ending == "conflist" || ending == "conf"))
        .find_map(|file| {
            let value: Value = serde_json::from_str(&files::text(&file)?).ok()?;
            (value["name"] == network).then(|| plugins(&value))
        })
}

/// Each plugin's `type`, and the one that its `ipam` names.
fn plugins(network: &Value) -> Vec<String> {
    let single = std::slice::from_ref(network);
    let list = network["plugins"].as_array().map_or(single, Vec::as_slice);
    let names = list.iter().flat_map(|plugin| [&plugin["type"], &plugin["ipam"]["type"]]);
    let mut names: Vec<String> = names.filter_map(|name| Some(name.as_str()?.to_owned())).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A string in nerdctl's settings, which have no tables.
fn setting(text: &str, key: &str) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let (_, value) = document.get_ref().iter().find(|(name, _)| name.get_ref() == key)?;
    value.get_ref().as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files::fixture::Fixture;

    fn host(folder: &str, plugins: &[&str]) -> Fixture {
        let host = Fixture::new(&[]);
        plugins.iter().for_each(|plugin| host.program(&format!("{folder}/{plugin}"), b"plugin"));
        host
    }

    fn obstacle(host: &Fixture, network: Option<&str>, namespace: Option<&str>) -> String {
        look(host.path(), network, namespace, None).unwrap().obstacle.unwrap_or_default()
    }

    #[test]
    fn what_the_default_network_needs() {
        for folder in FOLDERS {
            let host = host(folder, &DEFAULT_PLUGINS);
            assert_eq!(
                look(host.path(), None, None, None).unwrap(),
                Plugins { folder: folder.into(), obstacle: None }
            );
            for plugin in DEFAULT_PLUGINS {
                let path = format!("{folder}/{plugin}");
                host.remove(&path);
                let why = obstacle(&host, None, None);
                assert!(why.starts_with(&format!("{plugin} missing in {folder}")), "{why}");
                host.program(&path, b"plugin");
            }
        }
        let host = host("/usr/lib/cni", &DEFAULT_PLUGINS);
        // The first folder that exists is the only one in which nerdctl looks.
        host.add("/opt/cni/bin/", "");
        assert!(obstacle(&host, None, None).contains("missing in /opt/cni/bin"));
        host.add("/etc/nerdctl/nerdctl.toml", "# mine\ncni_path = '/usr/lib/cni'\n");
        assert_eq!(obstacle(&host, None, None), "");
        assert!(obstacle(&Fixture::new(&[]), None, None).contains("/opt/cni/bin does not exist"));
    }

    #[test]
    fn what_a_configured_network_names() {
        let host = host("/opt/cni/bin", &["macvlan", "dhcp"]);
        assert!(obstacle(&host, Some("lan"), None).contains("`nerdctl network create lan`"));
        let list =
            r#"{"cniVersion":"1.0.0","name":"lan","plugins":[{"type":"macvlan","ipam":{"type":"dhcp"}}]}"#;
        host.add("/etc/cni/net.d/nerdctl-lan.conflist", list);
        assert_eq!(obstacle(&host, Some("lan"), None), "");
        host.remove("/opt/cni/bin/dhcp");
        assert!(obstacle(&host, Some("lan"), None).starts_with("dhcp missing in /opt/cni/bin"));
        // A namespace's own, and a network of one plugin.
        host.add("/etc/cni/net.d/vectorlay/nerdctl-lan.conflist", &list.replace("dhcp", "macvlan"));
        assert_eq!(obstacle(&host, Some("lan"), Some("vectorlay")), "");
        host.add("/etc/cni/net.d/10-one.conf", r#"{"name":"one","type":"ptp"}"#);
        host.add("/etc/cni/net.d/00-broken.conflist", "{");
        assert!(obstacle(&host, Some("one"), None).starts_with("ptp missing"));
        for needless in ["none", "host", "container:a"] {
            assert_eq!(look(host.path(), Some(needless), None, None), None);
        }
    }
}
