"""Plans whose files compute the same codes on every processor: exact steps, sums within 32 bits, pairs within 16."""
