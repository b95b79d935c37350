"""The server: OpenAI's API over one base model that adapts in private for each request.

A door (HTTP, no torch) admits requests and hands them to an engine, the one process that computes. The files
here that the door needs import no torch, and nothing here is imported by the library.
"""
