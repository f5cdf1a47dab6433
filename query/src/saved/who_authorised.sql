-- title: Who authorised this call?
-- shows: The grant that a tool call names, who gave it, for whom, and from which root it comes. A call that names no grant, or one that was never received, has nulls there: that is the answer.
-- param call seq | The seq of the tool call.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
-- column event_time | When, as the source says.
-- column agent_id | The agent.
-- column tool | The tool.
-- column resource | What it was done to.
-- column grant_id | The grant.
-- column issuer | Who gave the grant.
-- column initiator_id | For whom it was given.
-- column root_grant_id | The first grant of its chain.
-- column depth | Derivations from the root grant.
-- column state | Its present state.
-- column actions | Patterns of actions that the grant allows.
-- column resources | Patterns of resources that it allows; null if they are not limited.
-- column issued_seq | The record that issued the grant.
-- column decided_by | Who decided about this call, by the newest decision before it in its trace: a person, or a service with its policy.
-- column decision | What was decided.
SELECT c.seq, c.record_hash, c.event_time, c.agent_id, c.tool, c.resource, c.grant_id, g.issuer, g.initiator_id,
       g.root_grant_id, g.depth, g.state, g.actions, g.resources, g.issued_seq, d.decided_by, d.decision
FROM tool_calls c
LEFT JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant)
LEFT JOIN (
    SELECT c.seq AS call_seq, d.decided_by, d.decision,
           row_number() OVER (PARTITION BY c.seq ORDER BY d.event_time DESC, d.seq DESC) AS place
    FROM tool_calls c JOIN decisions d ON d.trace_id = c.trace_id AND d.event_time <= c.end_time
         AND (d.tool_call_id = c.tool_call_id OR d.tool_call_id IS NULL AND d.grant_id = c.grant_id)
    WHERE c.seq = $call
) d ON d.call_seq = c.seq AND d.place = 1
WHERE c.seq = $call
