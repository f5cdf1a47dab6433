-- title: Through which chain did this grant come?
-- shows: Every grant from the root down to this one, with what each exceeds its parent in; a parent that was never received stands there as missing.
-- param grant text | The grant id.
-- column depth | 0 for the first grant that is known.
-- column grant_id | The grant.
-- column issuer | Who gave the grant.
-- column subject | The agent that it was given to.
-- column actions | Patterns of actions that the grant allows.
-- column resources | Patterns of resources that it allows; null if they are not limited.
-- column widened_by | Dimensions in which it exceeds its parent.
-- column state | Its present state.
-- column uses | Tool calls that named it.
-- column seq | The record that issued it.
-- column record_hash | Its content commitment, hex.
-- column note | What else is to be said.
SELECT depth, grant_id, issuer, subject, actions, resources, widened_by, state, uses, seq, record_hash, note
FROM delegation_chain($grant)
ORDER BY depth
