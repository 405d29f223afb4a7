"""What every process shares towards its operators and callers: logs, HTTP conventions, health, API pages."""
