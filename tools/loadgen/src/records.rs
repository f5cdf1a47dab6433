//! The records of a cycle as OTLP (docs/semantic-conventions.md), with holes for
//! what differs from one use to the next.
//!
//! A span is as large as was asked for, to the byte where varints allow it, to
//! three bytes otherwise: attributes go in by importance while there is room, and
//! the text of the step fills the rest. A log record keeps what its event needs.

use crate::piece::{Hole, Piece, attribute_len, varint_len};
use crate::random::{Random, within};
use crate::story::{Event, Note, Role, Step};

/// The smallest record that can be asked for, and the largest.
pub const BYTES_MIN: usize = 200;
pub const BYTES_MAX: usize = 4 << 20;

/// The services that the agents run in, and the one that gives out grants.
pub const SERVICES: [&str; 5] =
    ["agent-gateway", "research-agent", "payments-agent", "support-agent", "authority-proxy"];

/// Log records about authority come from one service, in their order.
pub const AUTHORITY: usize = 4;

const AGENTS: [&str; 6] = ["orchestrator", "research", "payments", "support", "code", "travel"];

/// What an agent that was asked by a user may do, and what it passes on.
const TOOLS: [&str; 8] = [
    "search_web",
    "read_file",
    "query_crm",
    "create_ticket",
    "send_email",
    "transfer_funds",
    "run_code",
    "book_flight",
];
const PASSED_ON: usize = 4;

const MODELS: [(&str, &str); 3] =
    [("anthropic", "claude-sonnet-4-5"), ("openai", "gpt-5-mini"), ("aws.bedrock", "amazon.nova-pro-v1:0")];

const WORDS: [&str; 32] = [
    "the",
    "account",
    "of",
    "customer",
    "was",
    "transfer",
    "to",
    "invoice",
    "and",
    "meeting",
    "please",
    "summarize",
    "in",
    "channel",
    "not",
    "found",
    "result",
    "for",
    "with",
    "approved",
    "policy",
    "a",
    "document",
    "on",
    "ticket",
    "status",
    "is",
    "pending",
    "agent",
    "retrieved",
    "by",
    "amount",
];

/// Which of the agents acts, for an agent's number in its trace.
fn cast(trace: u8, agent: u8) -> usize {
    usize::from(trace * 2 + agent) % AGENTS.len()
}

/// The service in which an agent of a trace runs.
pub fn service(trace: u8, agent: u8) -> usize {
    cast(trace, agent) % AUTHORITY
}

/// The tool that is called in a slot.
fn tool(slot: u8, agent: u8) -> &'static str {
    TOOLS[usize::from(slot) * 5 % if agent == 0 { TOOLS.len() } else { PASSED_ON }]
}

fn grant(trace: u8, agent: u8) -> Piece {
    Piece::of("grant-").with(Hole::TraceHex(trace)).and(&format!("-{agent}"))
}

fn call(slot: u8) -> Piece {
    Piece::of("call_").with(Hole::SpanHex(slot))
}

fn conversation(trace: u8) -> Piece {
    Piece::of("conv-").with(Hole::ConversationHex(trace))
}

fn agent_id(trace: u8, agent: u8) -> Piece {
    Piece::of(&format!("agent-{}", AGENTS[cast(trace, agent)]))
}

fn user(trace: u8) -> Piece {
    Piece::of(["ada", "grace", "alan", "edsger", "barbara"][usize::from(trace)]).and("@example.com")
}

/// Words of exactly this many bytes, with something unique in every two hundred.
fn text(random: &mut Random, len: usize) -> Piece {
    let mut out = Piece::default();
    let mut noise_at = random.below(40);
    while out.bytes.len() < len {
        let at = out.bytes.len();
        if at >= noise_at && len - at > 20 {
            out = out.and("ref:").with(Hole::Noise);
            noise_at = at + 120 + random.below(160);
        } else {
            out = out.and(WORDS[random.below(WORDS.len())]);
        }
        out = out.and(" ");
    }
    // Only words reach over the end: a hole always fits.
    out.bytes.truncate(len);
    out
}

/// The longest text whose field takes at most `room` bytes.
fn longest(room: usize, field_len: impl Fn(usize) -> usize) -> Option<usize> {
    let mut len = room.checked_sub(field_len(0))?;
    while field_len(len) > room {
        len -= 1;
    }
    Some(len)
}

/// The attributes of a span's role, the most important first, and the one whose
/// text fills the rest.
fn attributes(step: &Step, random: &mut Random) -> (Vec<(&'static str, Piece)>, &'static str, String) {
    let (trace, agent) = (step.trace, step.agent);
    let by = || ("gen_ai.agent.id", agent_id(trace, agent));
    let under = || ("authz.grant.id", grant(trace, agent));
    let within_conversation = || ("gen_ai.conversation.id", conversation(trace));
    let operation = |name: &str| ("gen_ai.operation.name", Piece::of(name));
    match step.role {
        Role::Agent => {
            let name = AGENTS[cast(trace, agent)];
            let list = vec![
                operation("invoke_agent"),
                by(),
                under(),
                within_conversation(),
                ("gen_ai.agent.name", Piece::of(name)),
                ("gen_ai.agent.version", Piece::of("2026.11.1")),
                ("user.id", user(trace)),
            ];
            (list, "gen_ai.output.messages", format!("invoke_agent {name}"))
        }
        Role::Chat => {
            let (provider, model) = MODELS[random.below(MODELS.len())];
            let list = vec![
                operation("chat"),
                by(),
                within_conversation(),
                ("gen_ai.request.model", Piece::of(model)),
                ("gen_ai.provider.name", Piece::of(provider)),
                ("gen_ai.response.id", Piece::of("resp_").with(Hole::Noise)),
            ];
            (list, "gen_ai.input.messages", format!("chat {model}"))
        }
        Role::Retrieval => {
            let list = vec![
                operation("retrieval"),
                ("gen_ai.data_source.id", Piece::of("kb-contracts")),
                by(),
                under(),
                within_conversation(),
                ("mcp.resource.uri", Piece::of("kb://contracts/").with(Hole::Noise)),
            ];
            (list, "gen_ai.retrieval.documents", "retrieval kb-contracts".into())
        }
        Role::Tool => {
            // One call in fifty of an agent with a narrowed grant goes beyond it.
            let beyond = agent > 0 && within(random.number(), 0.02);
            let name = if beyond { "transfer_funds" } else { tool(step.slot, agent) };
            let arguments = Piece::of("{\"recipient\":\"").with(Hole::Noise);
            let arguments = arguments.and(&format!("\",\"amount\":{}}}", random.below(5_000)));
            let list = vec![
                operation("execute_tool"),
                ("gen_ai.tool.name", Piece::of(name)),
                ("gen_ai.tool.call.id", call(step.slot)),
                under(),
                by(),
                ("gen_ai.tool.call.arguments", arguments),
                within_conversation(),
            ];
            (list, "gen_ai.tool.call.result", format!("execute_tool {name}"))
        }
    }
}

/// A `Span` of this many bytes.
pub fn span(step: &Step, bytes: usize, random: &mut Random) -> Piece {
    let (list, filler, mut name) = attributes(step, random);
    let mut head = Piece::default();
    head.field(1, &Piece::default().with(Hole::TraceId(step.trace)));
    head.field(2, &Piece::default().with(Hole::SpanId(step.slot)));
    if let Some(parent) = step.parent {
        head.field(4, &Piece::default().with(Hole::SpanId(parent)));
    }
    let mut tail = Piece::default();
    tail.number(6, if step.role == Role::Chat { 3 } else { 1 });
    tail.fixed64(7, Hole::Time(step.start));
    tail.fixed64(8, Hole::Time(step.end));
    tail.attribute(9, "loadgen.record", &Piece::default().with(Hole::Record));
    if step.role == Role::Tool && bytes >= 256 && within(random.number(), 0.02) {
        let mut status = Piece::default();
        status.number(3, 2);
        tail.field(15, &status);
        tail.attribute(9, "error.type", &Piece::of("timeout"));
    }
    let fixed = head.bytes.len() + 2 + name.len();
    let smallest = attribute_len(filler.len(), 0);
    for (key, value) in list {
        let len = attribute_len(key.len(), value.bytes.len());
        if fixed + tail.bytes.len() + len + smallest <= bytes {
            tail.attribute(9, key, &value);
        }
    }
    let room = bytes.saturating_sub(fixed + tail.bytes.len());
    if let Some(len) = longest(room, |len| attribute_len(filler.len(), len)) {
        tail.attribute(9, filler, &text(random, len));
    }
    // Where no length of the text is right, because its varints grow, the name is.
    let missing = bytes.saturating_sub(fixed + tail.bytes.len()).min(3);
    name.push_str(&"_v2"[3 - missing..]);
    head.field(5, &Piece::of(&name));
    head.append(&tail);
    head
}

/// A `LogRecord` of this many bytes, or as many as its event needs.
pub fn log(note: &Note, bytes: usize, expires: u64, random: &mut Random) -> Piece {
    let mut piece = Piece::default();
    piece.fixed64(1, Hole::Time(note.time));
    piece.number(2, 9);
    piece.attribute(6, "loadgen.record", &Piece::default().with(Hole::Record));
    piece.field(9, &Piece::default().with(Hole::TraceId(note.trace)));
    piece.field(10, &Piece::default().with(Hole::SpanId(note.slot)));
    piece.fixed64(11, Hole::Time(note.time + 50_000));
    tell(&mut piece, note, expires);
    let field = |len: usize| 1 + varint_len(len) + len;
    if let Some(len) = longest(bytes.saturating_sub(piece.bytes.len()), |len| field(field(len))).filter(|len| *len > 0)
    {
        let mut body = Piece::default();
        body.field(1, &text(random, len));
        piece.field(5, &body);
    }
    piece
}

fn tell(piece: &mut Piece, note: &Note, expires: u64) {
    let (trace, agent) = (note.trace, note.agent);
    let mut event = |name: &str, attributes: &[(&str, Piece)]| {
        piece.field(12, &Piece::of(name));
        for (key, value) in attributes {
            piece.attribute(6, key, value);
        }
    };
    let id = ("authz.grant.id", grant(trace, agent));
    let subject = ("authz.grant.subject", agent_id(trace, agent));
    let policy = [("authz.policy.id", Piece::of("agents-base")), ("authz.policy.version", Piece::of("14"))];
    let [policy_id, policy_version] = policy;
    match note.event {
        Event::Request => {
            event("authz.request", &[("authz.initiator.type", Piece::of("user")), ("authz.initiator.id", user(trace))])
        }
        Event::Policy => {
            event("authz.policy.evaluation", &[("authz.decision", Piece::of("allow")), policy_id, policy_version, id])
        }
        Event::Approval => event(
            "authz.approval",
            &[
                ("authz.approval.state", Piece::of("approved")),
                ("authz.approval.by", Piece::of("grace@example.com")),
                ("authz.approval.by_type", Piece::of("human")),
                id,
            ],
        ),
        Event::Issued | Event::Derived => given(piece, note, expires),
        Event::Denied => {
            let denied = ("authz.grant.id", grant(trace, agent).and("-wide"));
            event("authz.grant.denied", &[denied, subject, ("authz.reasons", Piece::of("wider than the task"))]);
            piece.attribute_list(6, "authz.grant.actions", &["delete_account"]);
        }
        Event::Decision => event(
            "authz.executor.decision",
            &[
                id,
                ("authz.decision", Piece::of("allow")),
                ("gen_ai.tool.name", Piece::of(tool(note.slot, agent))),
                ("gen_ai.tool.call.id", call(note.slot)),
                policy_id,
                policy_version,
            ],
        ),
        Event::Revoked => event(
            "authz.grant.revoked",
            &[id, ("authz.revoked_by", Piece::of("orchestrator")), ("authz.reasons", Piece::of("task done"))],
        ),
        Event::Output => event("authz.output", &[("authz.output.destination", Piece::of("chat:user"))]),
    }
}

/// A grant: of the first agent of a trace by the proxy, or passed on.
fn given(piece: &mut Piece, note: &Note, expires: u64) {
    let (trace, agent) = (note.trace, note.agent);
    let derived = note.event == Event::Derived;
    piece.field(12, &Piece::of(if derived { "authz.grant.derived" } else { "authz.grant.issued" }));
    piece.attribute(6, "authz.grant.id", &grant(trace, agent));
    let issuer = if derived { agent_id(trace, note.from) } else { Piece::of("authority-proxy") };
    piece.attribute(6, "authz.grant.issuer", &issuer);
    piece.attribute(6, "authz.grant.subject", &agent_id(trace, agent));
    if derived {
        piece.attribute(6, "authz.grant.parent_id", &grant(trace, note.from));
    } else {
        piece.attribute(6, "authz.grant.initiator.type", &Piece::of("user"));
        piece.attribute(6, "authz.grant.initiator.id", &user(trace));
    }
    piece.attribute_list(6, "authz.grant.actions", if derived { &TOOLS[..PASSED_ON] } else { &TOOLS[..] });
    piece.attribute_number(6, "authz.grant.expires_at", expires);
}
