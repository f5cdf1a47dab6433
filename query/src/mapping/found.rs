//! The attributes that the columns of every event come from, found in one pass over a record's:
//! more than forty names, where most records have ten attributes.

use custody_proto::wire::KeyValue;

use crate::attributes::{list_of, text_of};

/// Declares [`Found`]: a place for each name.
macro_rules! found {
    ($($place:ident: $name:literal,)+) => {
        /// The first attribute of each name.
        #[derive(Clone, Copy, Debug, Default)]
        pub(super) struct Found<'a> {
            $(pub(super) $place: Option<&'a KeyValue<'a>>,)+
        }

        /// How long each name is: a key is compared with those of its own length alone.
        #[allow(non_upper_case_globals, reason = "each has the name of the place that it is the length of")]
        mod length {
            $(pub(super) const $place: usize = $name.len();)+
        }

        impl<'a> Found<'a> {
            /// Finds them.
            pub(super) fn of(attributes: &'a [KeyValue<'a>]) -> Self {
                let mut out = Self::default();
                for attribute in attributes {
                    let place = match (attribute.key.len(), attribute.key) {
                        $((length::$place, $name) => &mut out.$place,)+
                        _ => continue,
                    };
                    place.get_or_insert(attribute);
                }
                out
            }

            /// All names with what was found of them.
            #[cfg(test)]
            pub(super) fn each(&self) -> Vec<(&'static str, Option<&'a KeyValue<'a>>)> {
                vec![$(($name, self.$place)),+]
            }
        }
    };
}

found! {
    tenant_id: "tenant.id",
    custody_tenant: "custody.tenant",
    agent_id: "gen_ai.agent.id",
    agent_name: "gen_ai.agent.name",
    agent_version: "gen_ai.agent.version",
    actor_chain: "authz.actor_chain",
    claims: "oauth.token.claims",
    actor_type: "authz.actor.type",
    approval_by_type: "authz.approval.by_type",
    security_actor_type: "security.actor.type",
    initiator_id: "authz.initiator.id",
    initiator_type: "authz.initiator.type",
    enduser_id: "enduser.id",
    user_id: "user.id",
    spiffe_id: "spiffe.id",
    workload_spiffe_id: "workload.spiffe_id",
    service_spiffe_id: "service.spiffe_id",
    effect: "authz.effect",
    tool_tier: "gen_ai.agent.tool.tier",
    trust: "authz.context.trust",
    evaluation_id: "authz.evaluation.id",
    arguments_digest: "authz.arguments.digest",
    shown_digest: "authz.approval.shown_digest",
    schema_digest: "authz.tool.schema_digest",
    parent_hash: "authz.grant.parent_hash",
    conversation_id: "gen_ai.conversation.id",
    session_id: "session.id",
    mcp_session_id: "mcp.session.id",
    grant_id: "authz.grant.id",
    action: "authz.action",
    resource: "authz.resource",
    tool: "gen_ai.tool.name",
    tool_call_id: "gen_ai.tool.call.id",
    decision: "authz.decision",
    reasons: "authz.reasons",
    policy_id: "authz.policy.id",
    policy_version: "authz.policy.version",
    skill_id: "skill.id",
    skill_version: "skill.version",
    classification: "data.classification",
    grant_workspace: "authz.grant.workspace",
    workspace: "authz.workspace",
    grant_task: "authz.grant.task.id",
    task: "authz.task.id",
    grant_process: "authz.grant.process.id",
    process: "authz.process.id",
    grant_correlation: "authz.grant.correlation_id",
    correlation: "authz.correlation_id",
}

/// A non-empty text, or a number or truth value as text.
pub(super) fn text(found: Option<&KeyValue<'_>>) -> Option<String> {
    text_of(found?).map(Into::into)
}

/// The first of several that has a text.
pub(super) fn first<const N: usize>(found: [Option<&KeyValue<'_>>; N]) -> Option<String> {
    found.into_iter().find_map(text)
}

/// A list of texts; a single text is a list of one.
pub(super) fn list(found: Option<&KeyValue<'_>>) -> Vec<String> {
    found.map_or_else(Vec::new, list_of)
}
