-- title: Which credentials are used by more than one agent?
-- shows: One credential or service account in the hands of several agents: nobody can say any more which of them acted.
-- column credential | Its id.
-- column agents | The agents that used it.
-- column uses | How many records name it.
-- column first_time | When first.
-- column last_time | When last.
-- column seqs | The first record of each agent.
SELECT credential, array_agg(agent_id ORDER BY seq) AS agents, sum(uses) AS uses, min(first_time) AS first_time,
       max(last_time) AS last_time, array_agg(seq ORDER BY seq) AS seqs
FROM (
    SELECT coalesce(json_as_text(attributes, 'authz.credential.id'), json_as_text(attributes, 'service-account-id')) AS credential,
           agent_id, count(*) AS uses, min(event_time) AS first_time, max(event_time) AS last_time, min(seq) AS seq
    FROM events WHERE agent_id IS NOT NULL
    GROUP BY 1, 2
)
WHERE credential IS NOT NULL
GROUP BY credential HAVING count(*) > 1
ORDER BY credential
