SELECT service, scope, signal,
       sum(n) AS records,
       sum(CASE WHEN source IS NULL THEN 0 ELSE n END) AS mapped,
       sum(CASE WHEN source IS NULL THEN n ELSE 0 END) AS unmapped,
       CAST(sum(CASE WHEN source IS NULL THEN 0 ELSE n END) AS DOUBLE) / sum(n) AS share,
       array_agg(DISTINCT source) FILTER (WHERE source IS NOT NULL) AS sources,
       array_agg(concat(name, ' (', CAST(n AS VARCHAR), ')') ORDER BY place) FILTER (WHERE source IS NULL AND place <= 10)
           AS not_understood
FROM (
    SELECT service, scope, signal, name, source, n,
           row_number() OVER (PARTITION BY service, scope, signal, source IS NULL ORDER BY n DESC, name) AS place
    FROM (
        SELECT service, scope, signal, name, source, count(*) AS n
        FROM (
            SELECT service_name AS service, scope_name AS scope, 'span' AS signal, name, source FROM spans
            UNION ALL
            SELECT service_name AS service, scope_name AS scope, 'log' AS signal,
                   coalesce(event_name, '(no name)') AS name, source FROM logs
        )
        GROUP BY service, scope, signal, name, source
    )
)
GROUP BY service, scope, signal
