//! The settings in force, for `vectorlay-agent config`. Secrets are masked.

use serde_json::{Map, json};

use super::{Effective, Value};

/// An aligned table: name, value (`-` where there is none) and source.
pub fn text(settings: &[Effective]) -> String {
    let rows: Vec<[String; 3]> = settings
        .iter()
        .map(|Effective { setting, value, source }| {
            let shown = value.as_ref().map_or_else(|| "-".to_owned(), |value| value.shown(setting.kind));
            [setting.name.to_owned(), shown, source.describe(setting)]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (names, values) = (width(0), width(1));
    let mut text = String::new();
    for [name, value, source] in &rows {
        text.push_str(&format!("{name:names$}  {value:values$}  {source}\n"));
    }
    text
}

/// A JSON object: each setting's name with its `value` and `source`.
pub fn json(settings: &[Effective]) -> serde_json::Value {
    let mut all = Map::new();
    for Effective { setting, value, source } in settings {
        let shown = match value {
            None => serde_json::Value::Null,
            Some(Value::Bool(value)) => (*value).into(),
            Some(Value::Whole(number)) => (*number).into(),
            Some(value @ (Value::Text(_) | Value::Secret(_))) => value.shown(setting.kind).into(),
        };
        all.insert(setting.name.to_owned(), json!({ "value": shown, "source": source.describe(setting) }));
    }
    all.into()
}
