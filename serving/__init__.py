"""A trained model in use: the public interface, bundles, files, streams, hotwords."""
