"""What an export adds so that the package ``transformers`` reads it: ``files.py`` writes it, the others are copied.

Nothing here imports ``configuration_cmm`` and ``modeling_cmm``: transformers runs the copies that lie in the folder.
"""
