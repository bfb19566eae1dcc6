"""The sub-commands: each parses, calls one public function, prints."""
