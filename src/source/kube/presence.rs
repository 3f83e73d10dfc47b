//! Whether what a source names is there, and what there is instead. Only metadata is asked for: no value is sent.

use kube::api::ListParams;

use super::client::Clients;
use super::failure::Failure;
use super::wire::Page;
use super::{Scope, Watch};

/// How many names are shown at most.
const NAMES: u32 = 20;
/// The most that an answer may take up, in bytes. An object has at most 256 KiB of annotations.
const ANSWER_LIMIT: usize = 10 << 20;

/// What is missing of a source: a sentence on what there is instead. `None`: it is there, or nobody can know.
pub async fn missing(clients: &Clients, watch: &Watch) -> Option<String> {
    let here = names(clients, watch, ListParams { limit: Some(1), ..watch.list() }).await.ok()?;
    if !here.is_empty() {
        return None;
    }
    let place = watch.scope.place().0.map_or_else(|| "any namespace".to_owned(), |ns| format!("namespace {ns}"));
    // Who may read one object by its name may often read no other, and is not shown any.
    let others = names(clients, watch, ListParams { limit: Some(NAMES), ..ListParams::default() }).await;
    let there_is = match others {
        Ok(names) if names.is_empty() => format!("; there is no {} in {place}", watch.kind),
        Ok(names) => format!("; there is: {}", names.join(", ")),
        Err(_) => String::new(),
    };
    let what = match &watch.scope {
        Scope::Named { .. } => "it does not exist",
        Scope::Selected { .. } => "nothing has these labels",
    };
    Some(format!("{what}{there_is}"))
}

async fn names(clients: &Clients, watch: &Watch, parameters: ListParams) -> Result<Vec<String>, Failure> {
    let deadline = clients.deadlines().answer;
    let mut answer = clients.send(watch.resource().list_metadata(&parameters), deadline).await?;
    let text = answer.text(ANSWER_LIMIT, deadline).await?.ok_or(Failure::PageTooLarge)?;
    let page: Page = serde_json::from_slice(&text).map_err(|error| Failure::json(&error))?;
    let items = page.items.into_iter().flatten();
    Ok(items.map(|item| item.id(watch.kind).name.to_string()).collect())
}
