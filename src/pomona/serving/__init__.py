"""The server: OpenAI's HTTP interface, the administration of adapters, metrics and the pages.

A request walks gate.py (who may ask) -> app.py (which handler) -> chat_request.py (what is asked) ->
conversation.py and answering.py (prompt, guide, tickets of the scheduler) -> chat.py (the reply, whole or
streamed). docs/serve.md is the operator's page, docs/openai.md the table of what is supported.
"""
