-- A memory was written after untrusted content was read, and read later in the conversation before something was written or sent.
-- severity: high
-- tags: OWASP ASI06, ATLAS AML.T0051.001, ATLAS AML.T0080.000
-- on: tool_call
-- fires: at once
-- needs: memory.id, memory.operation, authz.context.trust, authz.effect
WITH untrusted AS (
    -- Each of these tables has one row a conversation and tenant, or a memory: the earliest of those that count. What names no
    -- tenant is of the one that it meets.
    SELECT u.conversation_id, u.tenant, min(u.event_time) AS since, first_value(u.seq ORDER BY u.event_time, u.seq) AS seq
    FROM events u
    WHERE json_as_text(u.attributes, 'authz.context.trust') = 'untrusted' AND u.conversation_id IS NOT NULL
    GROUP BY u.conversation_id, u.tenant
), written AS (
    SELECT w.conversation_id, json_as_text(w.attributes, 'memory.id') AS memory, coalesce(w.tenant, u.tenant) AS tenant,
           min(w.event_time) AS since, first_value(w.seq ORDER BY w.event_time, w.seq, u.seq) AS seq,
           first_value(u.seq ORDER BY w.event_time, w.seq, u.seq) AS untrusted_seq
    FROM events w
    JOIN untrusted u ON u.conversation_id = w.conversation_id AND same_tenant(u.tenant, w.tenant) AND u.since <= w.event_time
    WHERE json_as_text(w.attributes, 'memory.operation') = 'write'
    GROUP BY w.conversation_id, json_as_text(w.attributes, 'memory.id'), coalesce(w.tenant, u.tenant)
), recalled AS (
    SELECT r.conversation_id, coalesce(r.tenant, w.tenant) AS tenant, min(r.event_time) AS since,
           first_value(r.seq ORDER BY r.event_time, r.seq) AS seq,
           first_value(w.memory ORDER BY r.event_time, r.seq, w.seq) AS memory,
           first_value(w.seq ORDER BY r.event_time, r.seq, w.seq) AS written_seq,
           first_value(w.untrusted_seq ORDER BY r.event_time, r.seq, w.seq) AS untrusted_seq
    FROM events r
    JOIN written w ON w.conversation_id = r.conversation_id AND same_tenant(w.tenant, r.tenant) AND w.memory = json_as_text(r.attributes, 'memory.id') AND w.since <= r.event_time
    WHERE json_as_text(r.attributes, 'memory.operation') = 'read'
    GROUP BY r.conversation_id, coalesce(r.tenant, w.tenant)
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('memory ', first_value(r.memory ORDER BY r.since, r.seq), ' was written after untrusted content was read, and led to ', c.tool) AS detail,
       make_array(first_value(r.untrusted_seq ORDER BY r.since, r.seq), first_value(r.written_seq ORDER BY r.since, r.seq),
                  first_value(r.seq ORDER BY r.since, r.seq), c.seq) AS evidence
FROM events c
JOIN recalled r ON r.conversation_id = c.conversation_id AND same_tenant(r.tenant, c.tenant) AND r.since <= c.event_time
WHERE c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') IN ('write', 'external_send') AND json_as_text(c.attributes, 'memory.operation') IS NULL
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool
