"use strict";
// Two texts, word by word: which words only one of them has. Returns [parts of a, parts of b], each part
// [text, true where only this text has it]; null where the texts are too long to compare.
const wordDiff = (() => {
  const CELLS = 4e6;
  // A word or a sign, with the space after it: spaces alone would count as words in common.
  const words = (text) => text.match(/[\p{L}\p{N}_]+\s*|[^\s\p{L}\p{N}_]\s*|\s+/gu) || [];
  const join = (list, own) => {
    const parts = [];
    list.forEach((word, i) => {
      const last = parts[parts.length - 1];
      if (last && last[1] === own[i]) last[0] += word;
      else parts.push([word, own[i]]);
    });
    return parts;
  };
  // Length of the longest common subsequence of the words from i in a and from j in b on.
  const table = (a, b) => {
    const width = b.length + 1;
    const size = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        size[i * width + j] = a[i] === b[j]
          ? size[(i + 1) * width + j + 1] + 1
          : Math.max(size[(i + 1) * width + j], size[i * width + j + 1]);
      }
    }
    return size;
  };
  return (one, other) => {
    const [wordsA, wordsB] = [words(one), words(other)];
    if (wordsA.length * wordsB.length > CELLS) return null;
    const [a, b] = [wordsA, wordsB].map((list) => list.map((word) => word.trim()));
    const size = table(a, b);
    const width = b.length + 1;
    const ownA = a.map(() => true);
    const ownB = b.map(() => true);
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) {
        ownA[i] = false;
        ownB[j] = false;
        i += 1;
        j += 1;
      } else if (size[(i + 1) * width + j] >= size[i * width + j + 1]) i += 1;
      else j += 1;
    }
    return [join(wordsA, ownA), join(wordsB, ownB)];
  };
})();
