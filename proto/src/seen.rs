//! What a person sees of a text: characters that steer what shows it, and characters that are not seen. Every part
//! that shows outside text, or believes a name, asks here, so that there is one list.

/// Whether a character steers what shows it: a control of terminals, a separator of lines, a tag, or what turns the
/// direction of text around. It is shown as a picture or an escape, never as it is.
pub const fn is_steering(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1F}'
        | '\u{7F}'..='\u{9F}'
        | '\u{61C}'
        | '\u{200E}'
        | '\u{200F}'
        | '\u{2028}'..='\u{202E}'
        | '\u{2066}'..='\u{2069}'
        | '\u{E0000}'..='\u{E007F}'
    )
}

/// Whether a character is not seen, or changes how others are: with it one name passes for another. Beside those that
/// steer, these are the Unicode properties Default_Ignorable_Code_Point, Cf, Zl and Zp, and the blank Braille pattern.
///
/// Texts of many languages have some of them (joiners, for one), so what is only shown keeps them.
pub const fn is_unseen(c: char) -> bool {
    is_steering(c)
        || matches!(c,
            '\u{AD}'
            | '\u{34F}'
            | '\u{600}'..='\u{605}'
            | '\u{6DD}'
            | '\u{70F}'
            | '\u{890}'
            | '\u{891}'
            | '\u{8E2}'
            | '\u{115F}'
            | '\u{1160}'
            | '\u{17B4}'
            | '\u{17B5}'
            | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}'
            | '\u{2060}'..='\u{206F}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}'
            | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}'
            | '\u{110BD}'
            | '\u{110CD}'
            | '\u{13430}'..='\u{1343F}'
            | '\u{1BCA0}'..='\u{1BCA3}'
            | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}'
        )
}

/// Whether a text can be the name of somebody: there is something to see in it, all of it is seen, and it has no blanks
/// at its ends, where nobody sees them.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.trim().len() == text.len() && !text.chars().any(is_unseen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_is_seen_of_it() {
        for name in
            ["ann", "Ann Lee", "ann@example.com", "Ünal Çelik", "李雷", "עֲנָת", "आन", "🦀", "auth0|5f7c", "a\u{a0}b"]
        {
            assert!(is_name(name), "{name:?}");
        }
        for blank in ["", " ", "  ", "\t", "\u{a0}", "\u{3000}", "\u{2003}", " ann", "ann ", "ann\u{a0}"] {
            assert!(!is_name(blank), "{blank:?}");
        }
        let unseen = "\0\n\u{7f}\u{85}\u{9b}\u{ad}\u{34f}\u{61c}\u{115f}\u{180e}\u{200b}\u{200d}\u{200e}\u{2028}\
                      \u{2029}\u{202e}\u{2060}\u{2066}\u{2800}\u{3164}\u{fe0f}\u{feff}\u{ffa0}\u{fff9}\u{1d173}\u{e0041}\u{e0100}";
        for c in unseen.chars() {
            assert!(is_unseen(c) && !is_name(&format!("an{c}n")), "{c:?}");
        }
        assert!((0..0x11_0000).filter_map(char::from_u32).filter(|c| c.is_control()).all(is_steering));
        // What many languages are written with is shown as it is.
        for c in ['\u{200c}', '\u{200d}', '\u{fe0f}', '\u{ad}'] {
            assert!(!is_steering(c), "{c:?}");
        }
    }
}
