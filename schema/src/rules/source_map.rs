//! The places of declared resources in their files, for problems that are found later.

use std::collections::BTreeMap;

use crate::document::Document;
use crate::snapshot::ResourceId;
use crate::value::{Location, Step};

/// The places of resources in the files that declare them, whether they could be read or not.
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

    /// The place of the value of a resource that a path leads to, or of the last one on it that exists; for
    /// an empty path that of the name.
    pub fn location(&self, id: &ResourceId, path: &[Step<'_>]) -> Option<Location> {
        Some(self.documents.get(id)?.location(path))
    }

    /// The place of one text of such a value, alone or in a list.
    pub fn element(&self, id: &ResourceId, path: &[Step<'_>], text: &str) -> Option<Location> {
        self.documents.get(id)?.element(path, text)
    }

    /// The same, or where the text is written in another form, that of the whole value.
    pub fn element_or_field(&self, id: &ResourceId, path: &[Step<'_>], text: &str) -> Option<Location> {
        self.element(id, path, text).or_else(|| self.location(id, path))
    }

    /// The place of the name of the network that holds a resource.
    pub fn parent(&self, id: &ResourceId) -> Option<Location> {
        let document = self.documents.get(id)?;
        Some(Location { source: document.source, span: document.parent.as_ref()?.span })
    }
}
