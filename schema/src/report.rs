//! What is wrong with input: problems, gathered and then explained.
//!
//! A [`Problem`] is a finding about files, not a failed operation. Every reader of input pushes what it finds
//! to a [`Report`] and goes on, so that one run shows everything. Rendering is left to the programs.

use schemars::JsonSchema;
use serde::Serialize;

use crate::value::Location;

/// A finding about input.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Which of the known problems.
    pub code: Code,
    /// The resource that it is about; absent: none was read yet.
    pub id: Option<String>,
    /// Its place; absent: the input was not a file.
    pub at: Option<Location>,
    /// Other places that belong to it, each with what it says.
    pub related: Vec<(Location, String)>,
    /// What is wrong with what, and why it matters.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The input cannot be used.
    Error,
    /// The input can be used, but hardly means what its author thinks.
    Warning,
}

/// All the problems that one reading found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    problems: Vec<Problem>,
}

impl Report {
    /// Adds a problem.
    pub fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Adds the problems of another report.
    pub fn append(&mut self, other: Report) {
        self.problems.extend(other.problems);
    }

    /// Whether anything makes the input unusable.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.code.severity() == Severity::Error)
    }

    /// The problems, in the order of their files and places.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let mut sorted: Vec<_> = self.problems.iter().collect();
        sorted.sort_by_key(|problem| (problem.at, problem.code));
        sorted.into_iter()
    }

    /// The problems for which something is true, and the others.
    #[must_use]
    pub fn partition(self, is: impl Fn(&Problem) -> bool) -> (Self, Self) {
        let (these, others) = self.problems.into_iter().partition(is);
        (Self { problems: these }, Self { problems: others })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Problem {
    /// A problem that has only a code and a message yet.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, id: None, at: None, related: Vec::new(), message: message.into(), help: None }
    }

    /// The same problem at a place.
    #[must_use]
    pub fn at(mut self, at: impl Into<Option<Location>>) -> Self {
        self.at = at.into();
        self
    }

    /// The same problem with what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// The same problem, about a resource.
    #[must_use]
    pub fn about(mut self, id: impl ToString) -> Self {
        self.id = Some(id.to_string());
        self
    }

    /// The same problem, with another place that belongs to it.
    #[must_use]
    pub fn see(mut self, at: Option<Location>, what: impl Into<String>) -> Self {
        self.related.extend(at.map(|at| (at, what.into())));
        self
    }
}

/// `did you mean "x"?`, if one of the known words is close to the one that was written.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let lower = written.to_lowercase();
    let distance = |word: &&str| strsim::damerau_levenshtein(&lower, &word.to_lowercase());
    let nearest = known.into_iter().min_by_key(distance)?;
    let close = distance(&nearest) <= 1 + written.chars().count() / 4;
    close.then(|| format!("did you mean {nearest:?}?"))
}

/// Declares the codes: one table, from which everything that enumerates them is made.
macro_rules! codes {
    ($($variant:ident $code:literal $severity:ident $title:literal $explanation:literal)+) => {
        /// Which of the known problems; a code is never used again for another.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)+ }
            }

            /// A few constant words for it.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// What it means and what to do, at length.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $explanation,)+ }
            }
        }
    };
}

codes! {
    TooLarge "syntax::too_large" Error "file too large"
        "A file may hold 16 MiB, and a KDL file 32768 blocks. Split it: every file of a directory is read, and order has no meaning."
    TooDeep "syntax::too_deep" Error "nested too deep"
        "Blocks and lists may be nested 64 deep; configuration needs four levels. Deeper files are refused before they are parsed."
    NotText "syntax::not_text" Error "not UTF-8 text"
        "Files are UTF-8 text. A byte order mark at the start is allowed, and has no meaning."
    Kdl "syntax::kdl" Error "not KDL 2"
        "The file is not well-formed KDL 2.0. Texts are written in quotes, booleans as #true and #false, blocks in braces."
    Yaml "syntax::yaml" Error "not YAML"
        "The file is not well-formed YAML 1.2."
    YamlFeature "syntax::yaml_feature" Error "YAML feature not supported"
        "Aliases, anchors, tags, merge keys, several documents and keys that are not texts are refused: they hide content from reviewers, and they let a small file grow without bound."
    DuplicateKey "syntax::duplicate_key" Error "given twice"
        "A field may be given once. KDL and YAML parsers disagree about which of two wins, so neither does."
    UnknownWord "schema::unknown_word" Error "unknown word"
        "The word is neither a kind of object that is allowed here nor a field. `nmplan schema` prints what is allowed."
    UnknownField "schema::unknown_field" Error "unknown field"
        "The kind has no field of that name."
    MissingField "schema::missing_field" Error "field missing"
        "The field has no default, so it must be given."
    MissingName "schema::missing_name" Error "name missing"
        "An object is written with its name after its kind: `node \"db-1\"`, in YAML `nodes: { db-1: {} }`."
    ExtraArgument "schema::extra_argument" Error "one value too many"
        "An object takes one argument, its name; everything else is a field. A field takes its values either as arguments or as a block, not both."
    WrongType "schema::wrong_type" Error "wrong type"
        "The value has another type than the field. Values are not converted from one type to another."
    InvalidValue "schema::invalid_value" Error "invalid value"
        "The value has the right type but is not valid for the field."
    InvalidName "schema::invalid_name" Error "invalid name"
        "Names consist of lower-case letters, digits and inner hyphens, at most 63 characters, because nodes and entries resolve by them; the name of a network has at most 12, because its interface is called nm-NAME."
    DuplicateResource "schema::duplicate_resource" Error "defined twice"
        "A resource has one definition. Several blocks of one network may add objects to it, but its own fields are in one of them."
    NetworkNotDefined "schema::network_not_defined" Error "network not defined"
        "Objects are added to a network, but no block defines the network's own fields."
    UnknownVariable "schema::unknown_variable" Error "unknown variable"
        "${name} stands for a variable that nmplan.kdl declares with `var`. A literal ${ is written $${."
    UnsetVariable "project::unset_variable" Error "variable not set"
        "A variable gets its value from --var, else from NMPLAN_VAR_name, else from `set` in the chosen env, else from its own default; one of them must set it."
    UnknownReference "schema::unknown_reference" Error "no such object"
        "A field names an object that the files do not declare. Every node that a file names must be declared by a `node`; a selector names a node, a group or an external client; a CNAME that ends in the network's own name must be that of a node or an entry."
    Cycle "schema::cycle" Error "references in a cycle"
        "Objects refer to each other in a cycle: a DNS entry that leads back to itself, a group that contains itself. What they mean cannot be determined."
    NameTaken "schema::name_taken" Error "name taken"
        "Nodes, groups, external clients and DNS entries of one network share one set of names, so that each name belongs to one object, and selects and resolves to one thing."
    NoRange "schema::no_range" Error "network without addresses"
        "A network needs an IPv4 range, an IPv6 range, or both."
    RangeTooSmall "schema::range_too_small" Error "range too small"
        "The range has no room for two nodes, or for the nodes and clients that are declared, or a pool none for the clients of its ingress: an IPv4 range loses its first and last address, an IPv6 range its first, and a network's those that are in pools."
    OverlappingRanges "schema::overlapping_ranges" Error "ranges overlap"
        "Two networks share addresses, so a host in both could not distinguish them."
    OutsideRange "schema::outside_range" Error "address outside of the network"
        "A reserved address lies in the range of its network, and is neither the network nor the broadcast address."
    AddressTaken "schema::address_taken" Error "address reserved twice"
        "Two members of one network reserve the same address."
    UsesWithFor "schema::uses_with_for" Error "uses given twice"
        "A key with `for` may be used once by each node that it names; `uses` would repeat or contradict that."
    NodeLimit "schema::node_limit" Error "more nodes than allowed"
        "The network has more nodes, declared and joined together, than its own `node-limit` allows."
    DnsTarget "schema::dns_target" Error "entry without one target"
        "A DNS entry has either addresses (`a`, `aaaa`), or a `node`, or a `cname`: exactly one of the three."
    DnsChain "schema::dns_chain" Error "chain of entries too long"
        "CNAME entries may lead through at most 16 others; resolvers give up on longer ones."
    EmptyGroup "schema::empty_group" Error "group without members"
        "A group has at least one of its fields: `nodes`, `tags`, `groups` or `external-clients`."
    NoEffect "schema::no_effect" Error "rule without effect"
        "In a network whose `acl` is `allow`, which is the default, every member may open everything at every other, so a rule changes nothing. With `acl` `deny` members may open only what rules say."
    PortsWithoutProtocol "schema::ports_without_protocol" Error "ports without tcp or udp"
        "Only TCP and UDP have ports. A rule with `ports` needs `proto` `tcp` or `udp`; the `port` of a test means TCP unless `proto` is `udp`."
    EmptyTest "schema::empty_test" Error "test without assertion"
        "A test has at least one `reach`, `no-reach` or `path`; without any it would hold whatever is changed."
    PathEnds "schema::path_ends" Error "path between several"
        "A `path` is that of packets from one node or range to one other. A tag, a group or `*` may select several, whose paths differ."
    RangeInNetwork "schema::range_in_network" Error "range inside of a network"
        "An egress forwards to what lies outside of every network: the addresses inside of a network's range are its members'. A range that holds a network's is allowed, and leaves the network's own part alone."
    RangeTwice "schema::range_twice" Error "range forwarded to twice"
        "Two egress of one network have the same range, so which gateway carries it could not be determined. Ranges inside of each other are allowed: the longer prefix goes first."
    NamedTwice "schema::named_twice" Error "node named twice"
        "`via` is in order of preference, so that a node has one place in it."
    PoolRange "schema::pool_range" Error "pool not valid"
        "A pool is a part of its network's range of that family, and an ingress has one of each family at most."
    PoolTaken "schema::pool_taken" Error "pool that is not for clients alone"
        "Only external clients get addresses of a pool: no other pool overlaps it, no node has a reserved address in it, and no DNS entry leads into it but to an address that is reserved for a client."
    PublicKeyTaken "schema::public_key_taken" Error "WireGuard key used twice"
        "Two external clients of one network have the same public key. WireGuard knows a peer by its key, so they would be one peer, with the addresses of one of them."
    ApprovedTwice "schema::approved_twice" Error "host approved twice"
        "Two nodes of one network have the same fingerprint in `approved`. A host has one identity at its server, and is one node of a network."
    Relayed "schema::relayed" Error "node that cannot be relayed"
        "A node has one relay at most, and a node that relays, the hub and an external client have none. What a relay is `for` counts by name, group, reserved address, and by tags: those of declarations, and those that an access key gives. A join may bring about what no file says; then the first relay by name counts."
    NoDefaultRoute "schema::no_default_route" Warning "fallback without a default route"
        "`fallback` says what becomes of traffic to the internet while no gateway is there, so it needs `0.0.0.0/0` or `::/0` among the ranges. To other ranges there is no other way to fall back to."
    EndpointHidden "schema::endpoint_hidden" Warning "endpoint behind a range"
        "The range of an egress holds the declared endpoint of a node or an ingress. Agents keep WireGuard's packets outside of the mesh, but need nftables for it; on a host without, the route leads them into the tunnel that they carry, and the plan counts what is lost by that."
    SelectsNothing "schema::selects_nothing" Warning "selector without members"
        "As far as the files say, the selector selects nothing: a tag that no declared node or external client has and no access key gives, an address that no member can have, or a range outside of the network, to which no egress forwards. Nodes that joined with a key that was deleted or changed since may have other tags; `nmplan status` lists them."
    RangeHoldsNetwork "schema::range_holds_network" Warning "range that holds the network's own"
        "The range is wider than the network's own, so it selects every member with an address of that family, and of what lies outside of the network the part that is in it. `0.0.0.0/0` and `::/0` select no members."
    OutOfBounds "schema::out_of_bounds" Error "outside of its bounds"
        "The value is outside of its bounds; the message names them."
    ReservedNetworkName "schema::reserved_network_name" Error "name that others use"
        "Names of a network resolve on its nodes as NAME.NETWORK, so a network named `com`, `net`, `org` or by a country's two letters would take over names that nearly every host needs, and one named `local`, `localhost`, `arpa`, `test` or by another special-use name those that hosts resolve in their own way (RFC 6761 and its registry). Names that consist of digits end addresses. With `name-service` false no names resolve, and every name is allowed."
    PublicNetworkName "schema::public_network_name" Warning "name of a public domain"
        "Names of a network resolve on its nodes as NAME.NETWORK. Somebody has the name as a top-level domain (IANA's root zone): names below it that are public do not resolve on members that have a resolver for the network, and names of the network may be asked of strangers elsewhere."
    OutsideEntry "schema::outside_entry" Warning "entry that leads out of the mesh"
        "A DNS entry has an address that is in no range of its network, and in none that an egress forwards to, default routes aside. It resolves on members, but what they send there does not enter the mesh."
    UnusableEndpoint "schema::unusable_endpoint" Error "endpoint that nobody reaches"
        "The endpoint is an address or a name at which no other host reaches the node or the ingress: loopback, unspecified, multicast, broadcast, link-local or reserved (RFC 6890), localhost, or a name of a network, which resolves inside of the mesh."
    EndpointInRange "schema::endpoint_in_range" Warning "endpoint inside of a range"
        "The endpoint lies in a range of a network, or in the range that a server reserves for its tunnels by default. The tunnel would run through itself, so a server refuses it, except in a range that was let through with `--allow cut-off`. Only `nmplan plan` asks the server."
    ManagedByAnother "plan::managed_by_another" Error "managed by another project"
        "Each resource on the server is managed by one project and env. Only that one may change it."
    NotManaged "plan::not_managed" Error "made by hand"
        "The resource exists on the server and no project manages it. It is left alone: give the declared one another name, or delete the one on the server."
    RangeExhausted "plan::range_exhausted" Error "no address left"
        "The nodes that have joined do not fit into the range that is declared, or the external clients into it or into the pool of their ingress."
    JoinedAsNode "plan::joined_as_node" Error "external client that is a node"
        "A node that has joined has the name or the WireGuard key of an external client, so that the two could not be distinguished. Nodes that no file declares choose their names when they join; `nmplan status` lists them."
    KeyOver "plan::key_over" Error "key that is over before it is made"
        "The day on which the access key expires has begun already, so nobody could join with its token. A key that exists may get such a day, which ends it."
    CommsOverlap "plan::comms_overlap" Error "range of the server's tunnels"
        "The server reserves a range for its tunnels to agents: 10.101.0.0/16, or what its COMMS_RANGE sets. A host in a network with the same addresses could not distinguish the two. Nor may an egress forward to a part of it."
    ResolverClosed "plan::resolver_closed" Warning "name server out of reach"
        "Members ask the name servers of the server's COREDNS_ADDR for names of the network. One of these is in a range of the network, or behind one of its gateways, and rules keep members from its port 53, or nobody has its address: there names of the network do not resolve."
    OldAddress "plan::old_address" Warning "entry with an address that was"
        "A DNS entry has an address that a member has no longer after the plan, or one of a range that the network has no longer: so the name would lead to nobody, or to another member that gets the address. An entry with `node` follows its node, whatever address that has."
    HiddenEndpoint "plan::hidden_endpoint" Warning "range around the endpoint of a node"
        "A range of the network holds the address at which other hosts reach a node, as its declaration gives it or as the server sees it. Hosts that have joined the network have a route into the mesh for that address, so that their tunnels to the node, and what else they send to it, no longer arrive. Said when the plan makes or changes the range."
    HalfExit "plan::half_exit" Warning "way to the internet for one family alone"
        "An egress has `0.0.0.0/0` or `::/0` among its ranges, and none of the network has the other. A host that has both families sends by the other one as it did without the egress, past the gateway, and programs mostly prefer IPv6. Said when the plan makes it so."
    EndlessKey "plan::endless_key" Warning "key that never expires"
        "The plan makes an access key with which several hosts may join, or one that may be used more often than before, and which has no `expires`. Whoever finds its token in an old script or a backup can join with it. A key that may be used once, and one with `for`, which lets in only the nodes that it names, is no reason to warn."
    SingleCarrier "plan::single_carrier" Warning "many depend on one node"
        "At least five members depend on an egress or a relay with one node in `via`, so that they lose what it carries whenever that node restarts. The first node of several that is there carries, and the next one takes over by itself. Said when the plan brings it about: at the fifth member, or when the second node goes."
    IsolatedNode "plan::isolated_node" Warning "node that reaches nobody"
        "By the rules of the network nobody may open anything at the node, and it may open nothing itself, neither at members nor at what is behind a gateway. Said when the plan makes or changes the node, or brings this about. Nodes that carry traffic for others are of use without rules."
    RuleCovered "plan::rule_covered" Warning "rule that another one covers"
        "Whatever the rule allows, one other rule of the network allows as well, whoever joins: so it has no effect, and removing it would close nothing. Said when the plan makes or changes one of the two."
    RuleOfOne "plan::rule_of_one" Warning "rule about one member alone"
        "Both sides of the rule select one and the same member, which reaches itself without rules."
    RelayOfNobody "plan::relay_of_nobody" Warning "relay that carries nobody"
        "The `for` of the relay selects external clients alone. What these send and get is carried by the node of their ingress, so the relay carries nobody's traffic."
    RouteWithoutRule "plan::route_without_rule" Warning "route without permission"
        "An egress gives members a route, and never permission: in a network whose `acl` is `deny`, rules say who may open what in its ranges. No rule lets any of those that it is for open anything there, so what they send is dropped. Said when the plan makes or changes the egress, or brings this about."
    EndpointInMesh "plan::endpoint_in_mesh" Error "endpoint inside of a mesh"
        "The endpoint lies in a range of a network, is the address of a member, or lies in the range of the server's tunnels to agents: the tunnel would run through itself. In a range that was let through with `--allow cut-off` only addresses of members are refused."
    CutOff "plan::cut_off" Error "range that holds the server"
        "A range that is made or changed holds an address by which agents or nmplan reach the server: one that SERVER_HOST, PUBLIC_GRPC, PUBLIC_COMMS or nmplan's own URL resolves to, or a global address of an interface of the server. Other programs on the hosts that join would lose the server, and a host without nftables cannot be in such a network. An admin can let it through once, with `--allow cut-off`; the log keeps that."
    Protected "plan::protected" Error "protected network"
        "The network has `protect` on the server, so that no change deletes it: neither one that leaves its block or its file out, nor a deletion by hand. To delete it, remove `protect` from it and apply that; the apply after that may delete it. `--allow protect=NAME` lets a deletion through once; the log keeps that."
    MaxDelete "plan::max_delete" Error "more deletions than the guard allows"
        "The guard that the last apply of the project stored has `max-delete`, and the plan deletes more objects. A percentage is of the objects that the project manages before the apply. `--allow max-delete` lets one apply through; the log keeps that. A larger limit in nmplan.kdl counts from the apply after the one that declares it, so that no change loosens its own."
    MaxNodesChanged "plan::max_nodes_changed" Error "more nodes than the guard allows"
        "The guard that the last apply of the project stored has `max-nodes-changed`, and the plan affects more nodes that have joined, other than by what may be opened at them alone. A percentage is of the nodes that have joined the networks in which the project manages anything before the apply. `--allow max-nodes-changed` lets one apply through; the log keeps that."
    MaxReachLost "plan::max_reach_lost" Error "more reachability lost than the guard allows"
        "The guard that the last apply of the project stored has `max-reach-lost`, and more ordered pairs of members lose reachability by the plan. A percentage is of all ordered pairs of members of one network, in the networks in which the project manages anything before the apply. `--allow max-reach-lost` lets one apply through; the log keeps that."
    ServerAddress "plan::server_address" Error "address of the server"
        "The address that is reserved for a member is one by which the server is reached. No member is given such an address, in a range that was let through either."
    OwnNode "plan::own_node" Error "name of the server's own host"
        "The server's own host is a node of each network that declares a node of its name: netmaker, or what the server's CLIENT_NAME is. The server claims that name itself, without a key, so that no other host can take it; with CLIENT_MODE=off it claims none."
    DefaultCommsRange "schema::default_comms_range" Warning "range reserved by servers"
        "A server reserves 10.101.0.0/16 for its tunnels to agents, unless its COMMS_RANGE sets another range or it runs with COMMS=off, and refuses networks that overlap it, and an egress to a part of it. Only `nmplan plan` asks the server which range it reserves."
    TestFails "test::fails" Error "test that fails"
        "An assertion of a test does not hold: members reach each other that must not, or do not reach each other that must, or packets take another way. Tests are judged as if every declared node had joined, and two more nodes with each access key that has no `for` (one if it may be used once). `nmplan explain FROM TO` says by which rules one reaches the other. An admin can let a change through once, with `--allow test=ID`; the log keeps that."
    TestOfNobody "test::of_nobody" Warning "assertion about nobody"
        "A side of a `no-reach` selects no member, or `except` leaves none of it, so the assertion holds whatever the rules say."
    ProjectMissing "project::missing" Error "no project"
        "nmplan.kdl (or nmplan.yaml) names the project: `project \"acme\" schema=1`."
    ProjectSchema "project::schema" Error "unknown schema"
        "This nmplan reads files of schema 1."
    ProjectPath "project::path" Error "path not valid"
        "The paths of `use` must be directories or files below the project's directory."
    NothingDeclared "project::nothing_declared" Error "nothing declared"
        "No file declares a network, so everything that the project manages would be deleted: mostly the directory is a wrong one. Where that is meant, --allow-empty says so."
}
