"""The gateway beside an application in a pod: injection, admission, redirection. Pure but for the webhook's edges."""
