//! The text of `node.json`: `{"node_id": …, "node_token"?: …, "spec_key": 64 hexadecimal digits}`. Other keys are
//! ignored. A file written by hand needs only `node_id`.

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde_json::{Map, Value};

use crate::core::identity::Identity;
use crate::hmac::HASH_BYTES;
use crate::protocol::is_token;
use crate::types::{NodeId, Secret};

pub(super) fn write(identity: &Identity) -> Secret {
    let mut object = Map::new();
    object.insert("node_id".to_owned(), identity.node_id.as_str().into());
    if let Some(token) = &identity.node_token {
        object.insert("node_token".to_owned(), token.expose().into());
    }
    if let Some(key) = &identity.spec_key {
        object.insert("spec_key".to_owned(), HEXLOWER.encode(key).into());
    }
    Secret::new(format!("{}\n", Value::Object(object)))
}

/// # Errors
/// Says what is wrong with it, without quoting it.
pub(super) fn read(text: &str) -> Result<Identity, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let text_of = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{key} is not text")),
    };
    let node_id = text_of("node_id")?.ok_or("node_id is missing")?;
    let node_id = NodeId::new(node_id).map_err(|error| error.to_string())?;
    let node_token = match text_of("node_token")? {
        None => None,
        Some(token) if is_token(token) => Some(Secret::new(token.to_owned())),
        Some(_) => return Err("node_token is not printable ASCII".to_owned()),
    };
    let spec_key = match text_of("spec_key")? {
        None => None,
        Some(digits) => Some(key(digits).ok_or("spec_key is not 64 hexadecimal digits")?),
    };
    Ok(Identity { node_id, node_token, spec_key })
}

/// 64 hexadecimal digits of either case.
fn key(digits: &str) -> Option<[u8; HASH_BYTES]> {
    HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        for token in [None, Some("nt_\"quoted\\\"")] {
            for spec_key in [None, Some(std::array::from_fn(|i| (i * 8) as u8))] {
                let identity = Identity {
                    node_id: NodeId::new("node-1").unwrap(),
                    node_token: token.map(|token| Secret::new(token.to_owned())),
                    spec_key,
                };
                assert_eq!(read(write(&identity).expose()), Ok(identity));
            }
        }
    }

    #[test]
    fn files_of_other_hands() {
        let key = "0f".repeat(32);
        let check = |text: &str, good: bool| assert_eq!(read(text).is_ok(), good, "{text}");
        check(r#"{"node_id":"a"}"#, true);
        check(r#"{"node_id":"a","node_token":null,"later":{"x":[1]}}"#, true);
        check(&format!(r#"{{"node_id":"a","spec_key":"{key}"}}"#), true);
        check("", false);
        check("\0\0\0\0", false);
        check("{}", false);
        check("[]", false);
        check(r#"{"node_id":"a""#, false);
        check(r#"{"node_id":1}"#, false);
        check(r#"{"node_id":"a b"}"#, false);
        check(r#"{"node_id":"a","node_token":"a\nb"}"#, false);
        check(r#"{"node_id":"a","node_token":""}"#, false);
        check(r#"{"node_id":"a","spec_key":"0f"}"#, false);
        check(&format!(r#"{{"node_id":"a","spec_key":"+{}"}}"#, &key[1..]), false);
        assert!(!read(r#"{"node_id":"a","node_token":"hunter2 "}"#).unwrap_err().contains("hunter2"));
    }
}
