//! What files for a name server say: the same as what nodes are sent, whatever is declared and whoever has joined.
//!
//! A reading of zone files that is written here, apart from what renders them, is asked for each name.
#![expect(clippy::unwrap_used, reason = "a test")]

mod worlds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use schema::kinds::Dns;
use schema::scalars::Name;
use schema::view::Resolution;
use schema::zone::{hosts, serial, zone};

use worlds::draws;
use worlds::following::compiled;
use worlds::reading::Reading;
use worlds::small::{histories, network};

/// The records of a zone by name: how long it may be cached, the type, and the data.
type Records<'a> = BTreeMap<&'a str, Vec<(u32, &'a str, &'a str)>>;

fn records(text: &str) -> Records<'_> {
    let mut records = Records::new();
    for line in text.lines().filter(|line| !line.starts_with(['$', '@'])) {
        let [name, ttl, class, of, data] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(class, "IN");
        records.entry(name).or_default().push((ttl.parse().unwrap(), of, data));
    }
    records
}

/// What a name server of the zone answers, which follows one alias inside of it.
fn answer(records: &Records<'_>, name: &str) -> Option<Resolution> {
    let found = records.get(name)?;
    let inner = format!(".{}.", network());
    match found.as_slice() {
        [(_, "CNAME", to)] => match to.strip_suffix(&inner).filter(|name| !name.contains('.')) {
            Some(target) => match answer(records, target)? {
                addresses @ Resolution::Addresses(_) => Some(addresses),
                Resolution::Alias(to) => panic!("{name} leads through {target} to {to}"),
            },
            None => Some(Resolution::Alias(to.parse().unwrap())),
        },
        found => {
            let address = |(_, of, data): &(u32, &str, &str)| {
                let address: IpAddr = data.parse().unwrap();
                assert_eq!(*of, if address.is_ipv4() { "A" } else { "AAAA" });
                address
            };
            Some(Resolution::Addresses(found.iter().map(address).collect()))
        }
    }
}

proptest! {
    #![proptest_config(draws(200))]

    #[test]
    fn a_zone_and_the_hosts_say_what_those_who_may_know_a_name_are_sent(history in histories(3)) {
        let world = history.last();
        let reading = Reading::of(network(), &world);
        let mesh = compiled(&network(), &world).unwrap();
        let text = zone(&mesh, &world.snapshot, 7);
        prop_assert_eq!(serial(&text), Some(7));
        let records = records(&text);
        let mut lines = BTreeSet::new();
        let names: BTreeSet<Name> = reading.names();
        for name in &names {
            // A name without addresses has no record.
            let expected = reading.resolves_for_some(name).filter(|it| *it != Resolution::Addresses(BTreeSet::new()));
            prop_assert_eq!(answer(&records, name.as_str()), expected.clone(), "{} in\n{}", name, text);
            if let Some(Resolution::Addresses(addresses)) = expected {
                lines.extend(addresses.iter().map(|address| format!("{address}\t{name}.{}", network())));
            }
            let entry = world.snapshot.named::<Dns>(&network(), name);
            for (ttl, ..) in records.get(name.as_str()).into_iter().flatten() {
                prop_assert_eq!(*ttl, entry.map_or(60, |entry| entry.ttl.0), "{}", name);
            }
        }
        let known: BTreeSet<&str> = names.iter().map(Name::as_str).collect();
        prop_assert!(records.keys().all(|name| known.contains(name)), "{}", text);
        let hosts = hosts([&mesh]);
        prop_assert_eq!(hosts.lines().map(str::to_owned).collect::<BTreeSet<_>>(), lines, "{}", hosts);
    }
}
