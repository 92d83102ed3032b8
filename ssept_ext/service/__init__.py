"""A web server that answers from a trained model: `ssept serve`.

`app` has the routes, `schemas` what requests and answers are, and `answers` computes them. Requests that arrive
together are scored together (`batching`), by the model of a folder that is loaded again when it changes
(`current_model`). It needs the extra `serve`.
"""
