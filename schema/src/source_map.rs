//! Where declared resources stand in their files: what a problem found later points at.

use std::collections::BTreeMap;

use crate::document::Document;
use crate::snapshot::ResourceId;
use crate::value::{Data, Location, Value};

/// Where resources stand in the files that declare them, readable or not.
#[derive(Debug, Default)]
pub struct SourceMap {
    documents: BTreeMap<ResourceId, Document>,
}

impl SourceMap {
    /// Adds the document that declares a resource.
    pub(crate) fn insert(&mut self, id: ResourceId, document: Document) {
        self.documents.insert(id, document);
    }

    /// The document that declares a resource.
    pub(crate) fn document(&self, id: &ResourceId) -> Option<&Document> {
        self.documents.get(id)
    }

    /// Whether some file declares the resource, be it readable or not.
    pub fn declares(&self, id: &ResourceId) -> bool {
        self.documents.contains_key(id)
    }

    /// Where a field of a resource stands, or else the name of the resource.
    pub fn location(&self, id: &ResourceId, field: Option<&str>) -> Option<Location> {
        let document = self.documents.get(id)?;
        let value = field.and_then(|field| document.fields.get(field)).map(|member| member.value.span);
        Some(Location { source: document.source, span: value.unwrap_or(document.name.span) })
    }

    /// Where one text of a field stands, if it is a list that has it.
    pub fn element(&self, id: &ResourceId, field: &str, text: &str) -> Option<Location> {
        let document = self.documents.get(id)?;
        let Data::List(items) = &document.fields.get(field)?.value.data else { return None };
        let is = |item: &&Value| matches!(&item.data, Data::Text(it) if **it == *text);
        Some(Location { source: document.source, span: items.iter().find(is)?.span })
    }

    /// Where the name of the network stands that holds a resource.
    pub fn parent(&self, id: &ResourceId) -> Option<Location> {
        let document = self.documents.get(id)?;
        Some(Location { source: document.source, span: document.parent.as_ref()?.span })
    }
}
