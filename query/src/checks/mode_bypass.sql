-- Permissions were switched off: the agent asks nobody any more.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI09, ATLAS AML.T0081
-- on: authority_change
-- fires: at once
-- setting modes: ["bypassPermissions", "bypass", "yolo", "danger-full-access"] | the modes in which nobody is asked
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('the mode is now ', c.decision) AS detail,
       make_array(c.seq) AS evidence
FROM events c
WHERE c.kind = 'authority_change' AND array_has(setting_list('modes', c.workspace), c.decision)
