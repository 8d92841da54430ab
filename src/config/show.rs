//! The settings in force, for `vectorlay-agent config`. Secrets are masked.

use serde_json::{Map, json};

use super::{Setting, Value};

/// An aligned table: name, value (`-` where there is none) and source.
pub fn text(settings: &[Setting]) -> String {
    let rows: Vec<[String; 3]> = settings
        .iter()
        .map(|setting| {
            let shown = setting.value.as_ref().map_or_else(|| "-".to_owned(), |v| v.shown(setting.row.kind));
            [setting.row.name.to_owned(), shown, setting.source.describe(setting.row)]
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

/// The same as a JSON object: by name, `value` and `source`.
pub fn json(settings: &[Setting]) -> serde_json::Value {
    let mut all = Map::new();
    for setting in settings {
        let value = match &setting.value {
            None => serde_json::Value::Null,
            Some(Value::Bool(value)) => (*value).into(),
            Some(Value::Whole(number)) => (*number).into(),
            Some(value @ (Value::Text(_) | Value::Secret(_))) => value.shown(setting.row.kind).into(),
        };
        let source = setting.source.describe(setting.row);
        all.insert(setting.row.name.to_owned(), json!({ "value": value, "source": source }));
    }
    all.into()
}
