"""The embedding table: 64-bit keys to rows, with admission, expiry and a bound."""
