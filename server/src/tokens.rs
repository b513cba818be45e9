//! Bearer tokens as an operator sees them: made with a name, listed, revoked by name or id.

use std::fmt::Display;
use std::io::{self, Write};

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
    /// The name has the form of an id, so it could not be said which of the two is meant.
    #[error(
        "the name {0} has the form of a token's id; choose one with a letter after f, or of another length"
    )]
    NameIsId(Name),
    /// Nobody has seen it.
    #[error("the token could not be printed, so it was deleted again; create it anew")]
    Unprinted(#[source] io::Error),
    /// Nobody has seen it, and it is stored all the same.
    #[error("the token {id} could not be printed ({print}), nor deleted again; nmserver token revoke {id}")]
    Stray {
        /// Its id.
        id: String,
        /// Why it could not be printed.
        print: io::Error,
        /// Why it could not be deleted.
        source: StoreError,
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

/// Makes a token, stores what verifies it, and prints it to `out`; one that cannot be printed is not stored.
/// `expires` absent: it does not.
pub fn create(
    store: &mut dyn Store,
    name: Option<Name>,
    grant: Grant,
    expires: Option<Timestamp>,
    out: &mut dyn Write,
) -> Result<(), TokenError> {
    if let Some(name) = name.as_ref().filter(|name| identity::is_token_id(name.as_str())) {
        return Err(TokenError::NameIsId(name.clone()));
    }
    if let Some(name) = &name
        && let Some(other) = store.tokens()?.into_iter().find(|token| token.name.as_ref() == Some(name))
    {
        return Err(TokenError::NameTaken { name: name.clone(), id: other.id });
    }
    let (stored, token) = made(name, grant, expires)?;
    store.put_token(&stored)?;
    let Err(print) = writeln!(out, "{}", token.expose()).and_then(|()| out.flush()) else { return Ok(()) };
    match store.delete_token(&stored.id) {
        Ok(_) => Err(TokenError::Unprinted(print)),
        Err(source) => Err(TokenError::Stray { id: stored.id, print, source }),
    }
}

/// Revokes the token with this id or, if none has it, with this name.
pub fn revoke(store: &mut dyn Store, which: &str) -> Result<(), TokenError> {
    if store.delete_token(which)? {
        return Ok(());
    }
    let is_called = |token: &StoredToken| token.name.as_ref().is_some_and(|name| name.as_str() == which);
    match store.tokens()?.into_iter().find(is_called) {
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
        let create = |store: &mut Memory, name| create(store, name, Grant::admin(), None, &mut io::sink());
        create(&mut store, name("ci")).expect("made");
        create(&mut store, None).expect("made");
        create(&mut store, None).expect("a token needs no name");
        let taken = create(&mut store, name("ci")).expect_err("the name is taken");
        assert!(taken.to_string().contains("nmserver token revoke ci"), "{taken}");
        revoke(&mut store, "ci").expect("revoked");
        create(&mut store, name("ci")).expect("the name is free again");
        let id = store.tokens().expect("read").iter().find(|it| it.name.is_none()).expect("one").id.clone();
        revoke(&mut store, &id).expect("revoked");
        assert!(matches!(revoke(&mut store, &id), Err(TokenError::Unknown(_))));
        assert_eq!(store.tokens().expect("read").len(), 2);
    }

    #[test]
    fn an_id_is_never_taken_for_the_name_of_another_token() {
        let mut store = Memory::default();
        let (first, _) = made(None, Grant::admin(), None).expect("made");
        let refused = create(&mut store, name("0123456789"), Grant::admin(), None, &mut io::sink());
        assert!(refused.expect_err("it is an id").to_string().contains("has the form of a token's id"));
        assert!(create(&mut store, name("0123"), Grant::admin(), None, &mut io::sink()).is_ok());
        // An earlier version took such names.
        let (mut called, _) = made(None, Grant::admin(), None).expect("made");
        called.name = first.id.parse().ok();
        assert!(called.name.is_some());
        store.put_token(&called).expect("stored");
        store.put_token(&first).expect("stored");
        revoke(&mut store, &first.id).expect("revoked");
        let left: Vec<_> = store.tokens().expect("read").into_iter().map(|token| token.id).collect();
        assert!(left.contains(&called.id) && !left.contains(&first.id), "{left:?}");
        revoke(&mut store, &first.id).expect("now it is the name that is meant");
        assert_eq!(store.tokens().expect("read").len(), 1);
    }

    #[test]
    fn a_token_that_cannot_be_printed_is_not_stored() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut store = Memory::default();
        let refused =
            create(&mut store, name("ci"), Grant::admin(), None, &mut Full).expect_err("it is full");
        assert!(refused.to_string().contains("was deleted again"), "{refused}");
        assert_eq!(store.tokens().expect("read"), []);
        let mut out = Vec::new();
        create(&mut store, name("ci"), Grant::admin(), None, &mut out).expect("the name is free");
        assert!(out.starts_with(b"nma_") && out.ends_with(b"\n"));
    }
}
