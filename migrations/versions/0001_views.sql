-- The views of revision 0001, as fixed text; a statement ends with a semicolon and a line's end.


CREATE VIEW qigstore.best_checkpoints AS
SELECT s.name AS session,
       row_number() OVER (
           PARTITION BY c.session_id ORDER BY c.phi DESC NULLS LAST, c.step DESC, c.id) AS place,
       c.step, c.phi, c.kappa_eff, c.regime, c.attempt, c.kind,
       c.verified_at IS NOT NULL AS verified, pg_size_pretty(c.bytes) AS size, c.created_at, c.id
FROM qigstore.checkpoint c JOIN qigstore.session s ON s.id = c.session_id
WHERE c.status = 'committed' AND c.phi IS NOT NULL;
COMMENT ON VIEW qigstore.best_checkpoints IS 'Committed checkpoints of each session by Φ; equal Φ: the later step, then the id.';
COMMENT ON COLUMN qigstore.best_checkpoints.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.best_checkpoints.place IS '1 for the best of its session.';
COMMENT ON COLUMN qigstore.best_checkpoints.phi IS 'Integration Φ at that step; finite.';
COMMENT ON COLUMN qigstore.best_checkpoints.kind IS 'regular, or emergency: saved while a stop was under way.';
COMMENT ON COLUMN qigstore.best_checkpoints.verified IS 'Whether its files were read back and found whole.';
COMMENT ON COLUMN qigstore.best_checkpoints.size IS 'Bytes on disk.';

CREATE VIEW qigstore.canonical_telemetry AS
SELECT s.name AS session, t.attempt, t.rank, t.step,
       coalesce(t.step > part.resumed_step, false) AS abandoned, t.recorded_at,
       CASE t.regime WHEN 0 THEN 'linear'
            WHEN 1 THEN 'geometric'
            WHEN 2 THEN 'hyperdimensional'
            WHEN 3 THEN 'topological_instability'
       END AS regime,
       t.loss, t.accuracy, t.grad_norm, t.learning_rate, t.phi,
       t.phi_nats, t.kappa_eff, t.basin_distance, t.geodesic_distance, t.curvature,
       t.recursion_depth, t.breakdown_pct, t.coherence_drift, t.meta_awareness, t.generativity,
       t.external_coupling, t.grounding, t.temporal_coherence, t.fisher_metric_trace,
       t.custom, t.seq, t.session_id
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT a.number, w.rank,
           (SELECT min(l.resumed_step)
            FROM qigstore.attempt l
            WHERE l.session_id = a.session_id AND l.number > a.number) AS resumed_step,
           (SELECT range_agg(int8range(lw.min_step, lw.max_step, '[]'))
            FROM qigstore.attempt l JOIN qigstore.writer lw ON lw.attempt_id = l.id
            WHERE l.session_id = a.session_id AND l.number > a.number
              AND lw.rank = w.rank AND lw.max_step IS NOT NULL) AS reached
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    OFFSET 0
) part
JOIN qigstore.telemetry t
  ON t.session_id = s.id AND t.attempt = part.number AND t.rank = part.rank
WHERE part.reached IS NULL OR NOT part.reached @> t.step OR NOT EXISTS (
    SELECT FROM qigstore.attempt l
    JOIN qigstore.telemetry n
      ON n.session_id = l.session_id AND n.attempt = l.number
    WHERE l.session_id = t.session_id AND l.number > t.attempt
      AND n.rank = t.rank AND n.step = t.step
);
COMMENT ON VIEW qigstore.canonical_telemetry IS 'The timeline of a session: for each rank and step the newest attempt that reached it. Filter by session.';
COMMENT ON COLUMN qigstore.canonical_telemetry.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.canonical_telemetry.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.canonical_telemetry.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.canonical_telemetry.recorded_at IS 'When record() was called, by the clock of its machine.';
COMMENT ON COLUMN qigstore.canonical_telemetry.regime IS 'linear, geometric, hyperdimensional, topological_instability, or NULL.';
COMMENT ON COLUMN qigstore.canonical_telemetry.custom IS 'Custom metrics by position; telemetry_metric shows them by name.';
COMMENT ON COLUMN qigstore.canonical_telemetry.seq IS 'Number of the record among those of its writer: the true order.';
COMMENT ON COLUMN qigstore.canonical_telemetry.abandoned IS 'A later attempt resumed before this step and did not reach it.';

CREATE VIEW qigstore.emergency_summary AS
SELECT s.name AS session, e.rule, e.severity, count(*) AS events,
       count(*) FILTER (WHERE e.acknowledged_at IS NULL AND e.resolved_at IS NULL) AS open,
       min(e.raised_at) AS first_at, max(e.raised_at) AS last_at,
       min(e.step) AS first_step, max(e.step) AS last_step,
       (array_agg(e.message ORDER BY e.raised_at DESC, e.id))[1] AS last_message
FROM qigstore.event e JOIN qigstore.session s ON s.id = e.session_id
GROUP BY s.id, s.name, e.rule, e.severity;
COMMENT ON VIEW qigstore.emergency_summary IS 'Events of each session by rule and severity.';
COMMENT ON COLUMN qigstore.emergency_summary.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.emergency_summary.events IS 'How many.';
COMMENT ON COLUMN qigstore.emergency_summary.open IS 'How many nobody acknowledged and nothing resolved.';
COMMENT ON COLUMN qigstore.emergency_summary.last_message IS 'What the newest one says.';

CREATE VIEW qigstore.latest_telemetry AS
SELECT s.name AS session, t.attempt, t.rank, t.step, t.recorded_at,
       CASE t.regime WHEN 0 THEN 'linear'
            WHEN 1 THEN 'geometric'
            WHEN 2 THEN 'hyperdimensional'
            WHEN 3 THEN 'topological_instability'
       END AS regime,
       t.loss, t.accuracy, t.grad_norm, t.learning_rate, t.phi,
       t.phi_nats, t.kappa_eff, t.basin_distance, t.geodesic_distance, t.curvature,
       t.recursion_depth, t.breakdown_pct, t.coherence_drift, t.meta_awareness, t.generativity,
       t.external_coupling, t.grounding, t.temporal_coherence, t.fisher_metric_trace,
       t.custom, t.seq, t.session_id
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT a.number, w.rank
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    ORDER BY a.number DESC, w.rank LIMIT 1
) newest
CROSS JOIN LATERAL (
    SELECT *
    FROM qigstore.telemetry r
    WHERE r.session_id = s.id AND r.attempt = newest.number AND r.rank = newest.rank
    ORDER BY r.step DESC LIMIT 1
) t;
COMMENT ON VIEW qigstore.latest_telemetry IS 'For each session the greatest step of its newest attempt that stored any.';
COMMENT ON COLUMN qigstore.latest_telemetry.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.latest_telemetry.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.latest_telemetry.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.latest_telemetry.recorded_at IS 'When record() was called, by the clock of its machine.';
COMMENT ON COLUMN qigstore.latest_telemetry.regime IS 'linear, geometric, hyperdimensional, topological_instability, or NULL.';
COMMENT ON COLUMN qigstore.latest_telemetry.custom IS 'Custom metrics by position; telemetry_metric shows them by name.';
COMMENT ON COLUMN qigstore.latest_telemetry.seq IS 'Number of the record among those of its writer: the true order.';

CREATE VIEW qigstore.recovery_history AS
SELECT s.name AS session, r.attempt, r.decided_at, r.policy, c.step, c.phi, r.reason,
       jsonb_array_length(r.candidates) AS candidates,
       (SELECT count(*) FROM jsonb_array_elements(r.candidates) x
        WHERE (x ->> 'healthy')::boolean) AS healthy,
       r.skip_first, r.skip_last, r.checkpoint_id, r.id
FROM qigstore.recovery_event r
JOIN qigstore.session s ON s.id = r.session_id
LEFT JOIN qigstore.checkpoint c ON c.id = r.checkpoint_id;
COMMENT ON VIEW qigstore.recovery_history IS 'What recovery decided at each start, and why.';
COMMENT ON COLUMN qigstore.recovery_history.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.recovery_history.attempt IS 'The attempt that it opened.';
COMMENT ON COLUMN qigstore.recovery_history.step IS 'Step of the chosen checkpoint; NULL: a fresh start.';
COMMENT ON COLUMN qigstore.recovery_history.candidates IS 'How many checkpoints it looked at.';
COMMENT ON COLUMN qigstore.recovery_history.healthy IS 'How many of them were fit to load.';
COMMENT ON COLUMN qigstore.recovery_history.skip_first IS 'First step it advised to leave out.';
COMMENT ON COLUMN qigstore.recovery_history.skip_last IS 'Last step it advised to leave out.';

CREATE VIEW qigstore.session_stats AS
SELECT s.name AS session, coalesce(n.attempts, 0) AS attempts, newest.status,
       coalesce(n.rows, 0)::bigint AS rows, coalesce(n.repeated, 0)::bigint AS repeated_rows,
       n.first_step, last.step AS last_step, n.last_seen_at,
       best.phi AS best_phi, best.step AS best_step, best.id AS best_checkpoint,
       (SELECT count(*) FROM qigstore.checkpoint c
        WHERE c.session_id = s.id AND c.status = 'committed') AS checkpoints,
       events.critical, events.warning, events.info, s.created_at
FROM qigstore.session s
CROSS JOIN LATERAL (
    SELECT count(DISTINCT a.id) AS attempts, sum(w.stored_rows) AS rows,
           sum(w.repeated_rows) AS repeated, min(w.min_step) AS first_step,
           greatest(max(a.heartbeat_at), max(w.stored_at)) AS last_seen_at
    FROM qigstore.attempt a LEFT JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id
) n
LEFT JOIN LATERAL (
    SELECT CASE WHEN a.status = 'running'
              AND a.heartbeat_at < now() - interval '30 s'
            THEN 'lost' ELSE a.status END AS status
    FROM qigstore.attempt a WHERE a.session_id = s.id ORDER BY a.number DESC LIMIT 1
) newest ON true
LEFT JOIN LATERAL (
    SELECT max(w.max_step) AS step
    FROM qigstore.attempt a JOIN qigstore.writer w ON w.attempt_id = a.id
    WHERE a.session_id = s.id AND w.max_step IS NOT NULL
    GROUP BY a.number ORDER BY a.number DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT c.id, c.step, c.phi
    FROM qigstore.checkpoint c
    WHERE c.session_id = s.id AND c.status = 'committed' AND c.phi IS NOT NULL
    ORDER BY c.phi DESC NULLS LAST, c.step DESC, c.id LIMIT 1
) best ON true
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE e.severity = 'critical') AS critical,
           count(*) FILTER (WHERE e.severity = 'warning') AS warning,
           count(*) FILTER (WHERE e.severity = 'info') AS info
    FROM qigstore.event e WHERE e.session_id = s.id
) events;
COMMENT ON VIEW qigstore.session_stats IS 'One row a session: how it stands, how far it came, its best checkpoint and its events.';
COMMENT ON COLUMN qigstore.session_stats.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.session_stats.attempts IS 'How many process lives it has had.';
COMMENT ON COLUMN qigstore.session_stats.status IS 'Of the newest attempt; lost: it runs, and its heartbeat is older than 30 s.';
COMMENT ON COLUMN qigstore.session_stats.rows IS 'Telemetry rows of all attempts and ranks.';
COMMENT ON COLUMN qigstore.session_stats.repeated_rows IS 'Records replaced by a later record of the same step.';
COMMENT ON COLUMN qigstore.session_stats.last_step IS 'The greatest step of the newest attempt that stored any.';
COMMENT ON COLUMN qigstore.session_stats.last_seen_at IS 'Last heartbeat or stored batch.';
COMMENT ON COLUMN qigstore.session_stats.best_phi IS 'Φ of the best committed checkpoint.';
COMMENT ON COLUMN qigstore.session_stats.best_step IS 'Its step.';
COMMENT ON COLUMN qigstore.session_stats.best_checkpoint IS 'Its id.';
COMMENT ON COLUMN qigstore.session_stats.checkpoints IS 'Committed checkpoints.';
COMMENT ON COLUMN qigstore.session_stats.critical IS 'Critical events.';

CREATE VIEW qigstore.telemetry_metric AS
SELECT s.name AS session, t.attempt, t.rank, t.step, m.name, t.custom[m.position] AS value
FROM qigstore.session s
JOIN qigstore.metric m ON m.session_id = s.id
JOIN qigstore.telemetry t ON t.session_id = s.id
WHERE t.custom[m.position] IS NOT NULL;
COMMENT ON VIEW qigstore.telemetry_metric IS 'Custom metrics by name, one row a value. Filter by session and name.';
COMMENT ON COLUMN qigstore.telemetry_metric.session IS 'Name of the session.';
COMMENT ON COLUMN qigstore.telemetry_metric.attempt IS 'Number of the attempt: one process life of the session.';
COMMENT ON COLUMN qigstore.telemetry_metric.rank IS 'Rank of the process in a distributed run, from 0.';
COMMENT ON COLUMN qigstore.telemetry_metric.name IS 'Name of the metric.';
COMMENT ON COLUMN qigstore.telemetry_metric.value IS 'What was recorded; NaN where that was NaN.';
