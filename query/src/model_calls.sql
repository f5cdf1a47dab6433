-- Requests to models, each once: with the tokens that it took and what it cost, as its source counts them.
-- duration_ns: End minus start, ns.
-- provider: Who runs the model.
-- model: The model that answered, else the one that was asked.
-- input_tokens: Tokens of the request. Claude Code leaves those out that came from a cache, others count them.
-- output_tokens: Tokens of the answer.
-- cached_tokens: Tokens of the request that came from a cache.
-- cost_usd: What it cost in dollars, where the source says.
-- error_type: What kind of error it ended with.
SELECT seq, record_hash, event_time, end_time,
       CAST(end_time AS BIGINT) - CAST(event_time AS BIGINT) AS duration_ns,
       trace_id, span_id, parent_span_id, tenant, service, agent_id, agent_name, initiator_id, workspace, task_id,
       CASE source
           WHEN 'claude_code' THEN 'anthropic'
           WHEN 'openinference' THEN coalesce(json_get_str(attributes, 'llm.provider'), json_get_str(attributes, 'llm.system'))
           ELSE coalesce(json_get_str(attributes, 'gen_ai.provider.name'), json_get_str(attributes, 'gen_ai.system'))
       END AS provider,
       CASE source
           WHEN 'claude_code' THEN json_get_str(attributes, 'model')
           WHEN 'codex' THEN json_get_str(attributes, 'model')
           WHEN 'gemini' THEN json_get_str(attributes, 'model')
           WHEN 'openinference' THEN coalesce(json_get_str(attributes, 'llm.model_name'), json_get_str(attributes, 'embedding.model_name'))
           ELSE coalesce(json_get_str(attributes, 'gen_ai.response.model'), json_get_str(attributes, 'gen_ai.request.model'))
       END AS model,
       TRY_CAST(CASE source
           WHEN 'claude_code' THEN json_as_text(attributes, 'input_tokens')
           WHEN 'codex' THEN json_as_text(attributes, 'input_token_count')
           WHEN 'gemini' THEN json_as_text(attributes, 'input_token_count')
           WHEN 'openinference' THEN json_as_text(attributes, 'llm.token_count.prompt')
           ELSE coalesce(json_as_text(attributes, 'gen_ai.usage.input_tokens'),
                         json_as_text(attributes, 'gen_ai.usage.prompt_tokens'),
                         json_as_text(attributes, 'body', 'model_usage', 'input_tokens'))
       END AS BIGINT) AS input_tokens,
       TRY_CAST(CASE source
           WHEN 'claude_code' THEN json_as_text(attributes, 'output_tokens')
           WHEN 'codex' THEN json_as_text(attributes, 'output_token_count')
           WHEN 'gemini' THEN json_as_text(attributes, 'output_token_count')
           WHEN 'openinference' THEN json_as_text(attributes, 'llm.token_count.completion')
           ELSE coalesce(json_as_text(attributes, 'gen_ai.usage.output_tokens'),
                         json_as_text(attributes, 'gen_ai.usage.completion_tokens'),
                         json_as_text(attributes, 'body', 'model_usage', 'output_tokens'))
       END AS BIGINT) AS output_tokens,
       TRY_CAST(CASE source
           WHEN 'claude_code' THEN json_as_text(attributes, 'cache_read_tokens')
           WHEN 'codex' THEN json_as_text(attributes, 'cached_token_count')
           WHEN 'gemini' THEN json_as_text(attributes, 'cached_content_token_count')
           WHEN 'openinference' THEN json_as_text(attributes, 'llm.token_count.prompt_details.cache_read')
           ELSE coalesce(json_as_text(attributes, 'gen_ai.usage.cache_read.input_tokens'),
                         json_as_text(attributes, 'gen_ai.usage.cache_read_input_tokens'),
                         json_as_text(attributes, 'body', 'model_usage', 'cache_read_input_tokens'))
       END AS BIGINT) AS cached_tokens,
       TRY_CAST(CASE source
           WHEN 'claude_code' THEN json_as_text(attributes, 'cost_usd')
           WHEN 'openinference' THEN json_as_text(attributes, 'llm.cost.total')
           ELSE coalesce(json_as_text(attributes, 'operation.cost'), json_as_text(attributes, 'gen_ai.usage.cost'))
       END AS DOUBLE) AS cost_usd,
       status, json_get_str(attributes, 'error.type') AS error_type,
       conversation_id, source, submitter, ingest_time
FROM events AS o
WHERE kind = 'model_call'
  -- Several instrumentations tell of one request, one inside the other: the outermost knows whose it is. A log stands
  -- in a span and is none.
  AND NOT EXISTS (SELECT 1 FROM events AS p
                  WHERE p.kind = 'model_call' AND p.trace_id = o.trace_id AND p.span_id = o.parent_span_id
                    AND p.observed_time IS NULL)
