//! Bearer tokens as an operator sees them: made with a name, listed, revoked by name or id.

use std::fmt::Display;

use jiff::Timestamp;
use proto::secret::Secret;
use schema::scalars::Name;

use crate::core::authorize::Grant;
use crate::identity::{self, IdentityError};
use crate::store::{Store, StoreError, StoredToken};

/// Why a token was not made or revoked.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Another token has the name.
    #[error(
        "the token {id} has the name {name} already; choose another, or revoke that one first: nmserver token revoke {name}"
    )]
    NameTaken {
        /// The name.
        name: Name,
        /// The token that has it.
        id: String,
    },
    /// There is no such token.
    #[error("there is no token {0}; `nmserver token list` shows names and ids")]
    Unknown(String),
    /// No token could be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a token that is not stored yet, and what verifies it.
pub fn made(
    name: Option<Name>,
    grant: Grant,
    expires: Option<Timestamp>,
) -> Result<(StoredToken, Secret<String>), IdentityError> {
    let (id, token, hash) = identity::new_token()?;
    Ok((StoredToken { id, name, hash, grant, created: Timestamp::now(), expires }, token))
}

/// Makes a token, and stores what verifies it; `expires` absent: it does not.
pub fn create(
    store: &mut dyn Store,
    name: Option<Name>,
    grant: Grant,
    expires: Option<Timestamp>,
) -> Result<Secret<String>, TokenError> {
    if let Some(name) = &name
        && let Some(other) = store.tokens()?.into_iter().find(|token| token.name.as_ref() == Some(name))
    {
        return Err(TokenError::NameTaken { name: name.clone(), id: other.id });
    }
    let (stored, token) = made(name, grant, expires)?;
    store.put_token(&stored)?;
    Ok(token)
}

/// Revokes the token with this id or name.
pub fn revoke(store: &mut dyn Store, which: &str) -> Result<(), TokenError> {
    let is_meant = |token: &StoredToken| {
        token.id == which || token.name.as_ref().is_some_and(|name| name.as_str() == which)
    };
    let found = store.tokens()?.into_iter().find(is_meant);
    match found {
        Some(token) if store.delete_token(&token.id)? => Ok(()),
        Some(_) | None => Err(TokenError::Unknown(which.to_owned())),
    }
}

/// The tokens as a table: what each may do, where, and until when.
pub fn table(tokens: &[StoredToken], now: Timestamp) -> String {
    let head = ["ID", "NAME", "ROLE", "NETWORKS", "PROJECTS", "CREATED", "EXPIRES"].map(str::to_owned);
    let row = |token: &StoredToken| {
        let StoredToken { id, name, hash: _, grant: Grant { role, networks, projects }, created, expires } =
            token;
        let expires = match expires {
            None => "never".to_owned(),
            Some(end) if *end <= now => format!("{} (expired)", minute(*end)),
            Some(end) => minute(*end),
        };
        [
            id.clone(),
            name.as_ref().map_or("-".into(), Name::to_string),
            role.to_string(),
            listed(networks.as_ref()),
            listed(projects.as_ref()),
            minute(*created),
            expires,
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(tokens.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn listed<T: Display>(scopes: Option<impl IntoIterator<Item = T>>) -> String {
    match scopes {
        None => "all".into(),
        Some(scopes) => scopes.into_iter().map(|scope| scope.to_string()).collect::<Vec<_>>().join(","),
    }
}

/// A time to the minute, which is all that an operator needs.
fn minute(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

#[cfg(test)]
mod tests {
    use crate::core::authorize::Role;
    use crate::store::memory::Memory;

    use super::*;

    fn name(text: &str) -> Option<Name> {
        text.parse().ok()
    }

    #[test]
    fn the_list_shows_what_each_token_is_for() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let made = |id: &str, name: Option<Name>, grant, expires| StoredToken {
            id: id.into(),
            name,
            hash: [0; 32],
            grant,
            created: at("2026-11-01T08:00:30Z"),
            expires,
        };
        let limited = Grant {
            role: Role::Applier,
            networks: Some(["corp", "lab"].map(|it| it.parse().expect("good")).into()),
            projects: Some(["acme/prod", "site"].map(|it| it.parse().expect("good")).into()),
        };
        let viewer = Grant { role: Role::Viewer, ..Grant::admin() };
        let tokens = [
            made("00000000aa", name("admin"), Grant::admin(), None),
            made("00000000ab", name("ci"), limited, Some(at("2027-01-01T00:00:00Z"))),
            made("00000000ac", None, viewer, Some(at("2026-11-02T00:00:00Z"))),
        ];
        insta::assert_snapshot!(table(&tokens, at("2026-12-01T00:00:00Z")), @r"
        ID          NAME   ROLE     NETWORKS  PROJECTS        CREATED               EXPIRES
        00000000aa  admin  admin    all       all             2026-11-01 08:00 UTC  never
        00000000ab  ci     applier  corp,lab  acme/prod,site  2026-11-01 08:00 UTC  2027-01-01 00:00 UTC
        00000000ac  -      viewer   all       all             2026-11-01 08:00 UTC  2026-11-02 00:00 UTC (expired)
        ");
    }

    #[test]
    fn a_name_is_one_tokens_and_revokes_it_as_its_id_does() {
        let mut store = Memory::default();
        create(&mut store, name("ci"), Grant::admin(), None).expect("made");
        create(&mut store, None, Grant::admin(), None).expect("made");
        create(&mut store, None, Grant::admin(), None).expect("a token needs no name");
        let taken = create(&mut store, name("ci"), Grant::admin(), None).expect_err("the name is taken");
        assert!(taken.to_string().contains("nmserver token revoke ci"), "{taken}");
        revoke(&mut store, "ci").expect("revoked");
        create(&mut store, name("ci"), Grant::admin(), None).expect("the name is free again");
        let id = store.tokens().expect("read").iter().find(|it| it.name.is_none()).expect("one").id.clone();
        revoke(&mut store, &id).expect("revoked");
        assert!(matches!(revoke(&mut store, &id), Err(TokenError::Unknown(_))));
        assert_eq!(store.tokens().expect("read").len(), 2);
    }
}
