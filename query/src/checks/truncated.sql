-- A record was cut before it came: its sender says so.
-- severity: informational
-- tags: OWASP ASI07
-- on: any
-- fires: at once
-- default: off
-- needs: truncated
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('its sender cut ', coalesce(json_as_text(c.attributes, 'custody.truncated'), json_as_text(c.attributes, 'truncated')), ' of it') AS detail,
       make_array(c.seq) AS evidence
FROM events c
WHERE json_as_text(c.attributes, 'custody.truncated') IS NOT NULL OR json_as_text(c.attributes, 'truncated') = 'true'
